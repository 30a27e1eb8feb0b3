"""The benchmarks' commands."""

from pathlib import Path
from typing import Annotated

import typer

from client.institution.index_flags import GoalOption
from protocol.terminal import AsJson, Outcome, command
from simulations.options import TRAINING_FLAGS, with_flags

app = typer.Typer(help="Measure this machine against other engines.", no_args_is_help=True)


@app.command()
@command
def score(
    items: Annotated[int, typer.Option(min=1, help="Vectors in the index.")] = 10_000,
    dim: Annotated[int, typer.Option(min=1, help="Coordinates of a vector.")] = 256,
    preset: Annotated[str, typer.Option(help="Parameter set: private or fast.")] = "private",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads for scoring.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Questions, after one to warm up.")] = 5,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Also measure TenSEAL, SEAL and OpenFHE.")
    ] = True,
    goal: GoalOption = "bytes",
    as_json: AsJson = False,
) -> Outcome:
    """Measure encrypted scoring, phase by phase, beside FAISS and other encrypted engines.

    The index is packed as blindsight index build does for the same --goal.
    """
    from simulations.bench.score import ScoreBench

    return ScoreBench(items, dim, preset, threads, queries, peers, goal).run()


@app.command()
@command
def aggregation(
    parameters: Annotated[int, typer.Option(min=1, help="Values of an update.")] = 10_000_000,
    institutions: Annotated[int, typer.Option(min=2, max=1000, help="How many.")] = 5,
    drop: Annotated[int, typer.Option(min=0, help="How many never send theirs.")] = 1,
    as_json: AsJson = False,
) -> Outcome:
    """Measure a round of secure aggregation: seconds, bytes and rounding."""
    from simulations.bench.aggregation import bench_aggregation

    return bench_aggregation(parameters, institutions, drop)


@app.command()
@command
def relay(
    items: Annotated[int, typer.Option(min=1, help="Vectors in the index.")] = 10_000,
    dim: Annotated[int, typer.Option(min=1, help="Coordinates of a vector.")] = 256,
    preset: Annotated[str, typer.Option(help="Parameter set: private or fast.")] = "private",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads for scoring.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Questions, after one to warm up.")] = 15,
    as_json: AsJson = False,
) -> Outcome:
    """Measure a question through the relay beside a direct one, with real processes."""
    from simulations.bench.relay import RelayBench

    return RelayBench(items, dim, preset, threads, queries).run()


@app.command()
@command
def load(
    items: Annotated[int, typer.Option(min=1, help="Vectors in the index.")] = 20_000,
    dim: Annotated[int, typer.Option(min=1, help="Coordinates of a vector.")] = 256,
    searchers: Annotated[int, typer.Option(min=2, max=32, help="Who ask at once.")] = 8,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long; the two comparisons take a tenth of it each.")
    ] = 60.0,
    preset: Annotated[str, typer.Option(help="Parameter set: private or fast.")] = "private",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads for scoring.")] = 2,
    as_json: AsJson = False,
) -> Outcome:
    """Load a real service: latency, throughput, errors, memory, batching and fairness."""
    from simulations.bench.load import LoadBench

    return LoadBench(items, dim, searchers, seconds, preset, threads).run()


@app.command()
@command
def search(
    institutions: Annotated[int, typer.Option(min=1, max=16, help="How many.")] = 3,
    items: Annotated[int, typer.Option(min=1, help="Pictures at each.")] = 5000,
    drawings: Annotated[
        int, typer.Option(min=1, help="Scenes to draw; each stands for many pictures.")
    ] = 300,
    dim: Annotated[int, typer.Option(min=1, help="Coordinates of a vector.")] = 128,
    queries: Annotated[int, typer.Option(min=1, help="Searches, after one to warm up.")] = 20,
    fresh: Annotated[int, typer.Option(min=1, help="Searches in fresh processes.")] = 5,
    k: Annotated[int, typer.Option("-k", "--k", min=1, max=100, help="How many pictures.")] = 10,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of each service.")] = 1,
    preset: Annotated[str, typer.Option(help="Parameter set: private or fast.")] = "private",
    release: Annotated[
        Path | None, typer.Option(help="A model release. (default: small towers, untrained)")
    ] = None,
    as_json: AsJson = False,
) -> Outcome:
    """Measure a whole search with real services: from the call to the pictures, beside FAISS."""
    from simulations.bench.search import SearchBench

    bench = SearchBench(institutions, items, drawings, dim, queries, fresh, k, threads, preset)
    return bench.run(release)


@app.command()
@command
@with_flags(TRAINING_FLAGS)
def training(
    data: Annotated[Path, typer.Option(help="What blindsight data inspect knows.")],
    institutions: Annotated[int, typer.Option(min=1, max=64, help="How many.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Use at most so many pairs.")] = None,
    as_json: AsJson = False,
    **options: object,
) -> Outcome:
    """Measure rounds of training, by Flower in process and in a plain loop, on one thread."""
    from simulations.bench.training import bench_training

    return bench_training(data, institutions, limit, options)


@app.command()
@command
def towers(
    data: Annotated[Path, typer.Option(help="What blindsight data inspect knows.")],
    image_encoder: Annotated[str, typer.Option(help="torchvision:NAME or transformers:FOLDER.")],
    text_encoder: Annotated[str, typer.Option(help="scratch or transformers:FOLDER.")] = "scratch",
    image_weights: Annotated[Path | None, typer.Option(help="A .safetensors file.")] = None,
    images: Annotated[int, typer.Option(min=2, help="Pictures to embed.")] = 128,
    texts: Annotated[int, typer.Option(min=2, help="Captions to embed.")] = 1024,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Turns; the fastest counts.")] = 3,
    as_json: AsJson = False,
) -> Outcome:
    """Measure encoders in PyTorch, in ONNX Runtime, and in eight bits."""
    from protocol.model.pretrained import EncoderChoice
    from simulations.bench.towers import bench_towers

    weights = "" if image_weights is None else str(image_weights)
    choice = EncoderChoice(image_encoder, weights, text_encoder)
    return bench_towers(choice, data, images, texts, threads, rounds)
