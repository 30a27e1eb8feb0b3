"""Encoders of others as towers: they compute what their own library computes, and train here."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn.functional import normalize
from torchvision import models as vision

from client.institution.training import train_epochs
from client.institution.training_set import Captions, PictureSet
from protocol.errors import BlindsightError, DataError, MalformedMessage, UsageError
from protocol.model.adapters import merge
from protocol.model.encoders.torchvision_models import TorchvisionImage
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.release import read_release, write_release
from protocol.model.settings import TrainingSettings
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import arrays_of, load_arrays

WORDS = ("a", "red", "blue", "green", "square", "circle", "in", "the", "cat", "dog", "top", "left")
SAID = [
    "a red square in the top left",
    "a blue circle",
    "the green cat",
    "dog",
    "a dog in the bottom right",
    "a red cat",
]
SIZE = 32
MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
MODES = ("full", "heads", "lora", "ffa-lora")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- tiny models, as their libraries save them

_TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}
_PICTURE = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_CLIP_TEXT = _TEXT | {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
_ALIGN_PICTURE = {
    "image_size": SIZE,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "kernel_sizes": [3, 5],
    "in_channels": [32, 8],
    "out_channels": [8, 16],
    "depthwise_padding": [],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "hidden_dim": 16,
}


def _distilbert() -> Any:
    return transformers.DistilBertConfig(
        vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=24
    )


TEXTS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**_TEXT),
    "roberta": lambda: transformers.RobertaConfig(**_TEXT, pad_token_id=0),
    "distilbert": _distilbert,
    "mpnet": lambda: transformers.MPNetConfig(**_TEXT, pad_token_id=0),
}
PICTURES: dict[str, Callable[[], Any]] = {
    "vit": lambda: transformers.ViTConfig(**_PICTURE),
    "convnext": lambda: transformers.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=SIZE
    ),
    "resnet": lambda: transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    ),
    "swin": lambda: transformers.SwinConfig(
        image_size=SIZE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "dinov2": lambda: transformers.Dinov2Config(**_PICTURE),
}
JOINT: dict[str, Callable[[], Any]] = {
    "clip": lambda: transformers.CLIPConfig(
        text_config=_CLIP_TEXT, vision_config=_PICTURE, projection_dim=24
    ),
    "siglip": lambda: transformers.SiglipConfig(
        text_config=_TEXT | {"pad_token_id": 0}, vision_config=_PICTURE
    ),
    "align": lambda: transformers.AlignConfig(
        text_config=_TEXT, vision_config=_ALIGN_PICTURE, projection_dim=16
    ),
}


def tokenizer() -> Any:
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*marks, *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=24,
    )


def preprocessor(**others: object) -> dict[str, object]:
    said = {"do_center_crop": False, "size": {"height": SIZE, "width": SIZE}, "resample": 3}
    return said | {"image_mean": list(MEAN), "image_std": list(STD)} | others


def saved(folder: Path, config: Any, seed: int = 0, texts: bool = True) -> Any:
    """Saves a model with random weights; returns it, as the library itself reads it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(config)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    if texts:
        tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor()))
    return transformers.AutoModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """By type, the folder of a tiny model and the model itself."""
    root = tmp_path_factory.mktemp("models")

    @lru_cache
    def find(kind: str) -> tuple[Path, Any]:
        config = (TEXTS | PICTURES | JOINT)[kind]()
        return root / kind, saved(root / kind, config, texts=kind not in PICTURES)

    return find


def pixels(count: int = 6, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def prepared(shown: torch.Tensor) -> torch.Tensor:
    level, spread = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    return (shown / 255.0 - level) / spread


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


def train(
    held: Pretrained, mode: str, steps: int = 1, **others: object
) -> tuple[TwoTowers, TrainingSettings]:
    """Steps on six pictures; the model, its adapters still on."""
    settings = TrainingSettings(
        train=mode, batch_size=6, learning_rate=0.05, lora_rank=2, towers=held.settings, **others
    )
    model = held.start(settings)
    data = PictureSet(
        pixels(6, held.settings.image_size).numpy(), Captions(tuple((s,) for s in SAID))
    )
    train_epochs(model, data, settings, torch.Generator().manual_seed(0), steps, (0.3, 0.4))
    return model, settings


def embedded(model: TwoTowers) -> torch.Tensor:
    with torch.no_grad():
        shown = model.encode_image(pixels(6, model.settings.image_size))
        return torch.cat([shown, model.encode_text(*model.tokenizer(SAID))])


# --- transformers, one side each


@pytest.mark.parametrize("kind", TEXTS)
@torch.no_grad()
def test_a_text_encoder_gives_the_mean_of_its_own_states(folders: Any, kind: str) -> None:
    folder, plain = folders(kind)
    held = Pretrained.load(EncoderChoice(text_encoder=f"transformers:{folder}"))
    assert held.settings.text_encoder == f"transformers:{kind}"
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        SAID, padding=True, return_tensors="pt"
    )
    states = plain(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    model = held.model(0)
    close(model.text_features(*model.tokenizer(SAID)), (states * mask).sum(1) / mask.sum(1))


@pytest.mark.parametrize("how", ["mean", "cls"])
@torch.no_grad()
def test_a_sentence_encoder_pools_as_it_says(tmp_path: Path, how: str) -> None:
    plain = saved(tmp_path, TEXTS["bert"]())
    (tmp_path / "1_Pooling").mkdir()
    said = {
        "pooling_mode_cls_token": how == "cls",
        "pooling_mode_mean_tokens": how == "mean",
        "word_embedding_dimension": 16,
    }
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
    held = Pretrained.load(EncoderChoice(text_encoder=f"transformers:{tmp_path}"))
    assert held.settings.text_pooling == how
    model = held.model(0)
    ids, mask = model.tokenizer(SAID)
    states = plain(ids, mask).last_hidden_state
    kept = mask[:, :, None]
    expected = states[:, 0] if how == "cls" else (states * kept).sum(1) / kept.sum(1)
    close(model.text_features(ids, mask), expected)


@pytest.mark.parametrize("kind", PICTURES)
@torch.no_grad()
def test_an_image_encoder_gives_its_own_vector(folders: Any, kind: str) -> None:
    folder, plain = folders(kind)
    held = Pretrained.load(EncoderChoice(image_encoder=f"transformers:{folder}"))
    assert held.settings.image_encoder == f"transformers:{kind}"
    assert (held.settings.image_mean, held.settings.image_std) == (MEAN, STD)
    out = plain(pixel_values=prepared(pixels()))
    first_state = kind in ("vit", "dinov2")
    expected = out.last_hidden_state[:, 0] if first_state else out.pooler_output.flatten(1)
    close(held.model(0).image_features(pixels()), expected)


@pytest.mark.parametrize("whole", ["BertForSequenceClassification", "ViTForImageClassification"])
def test_a_head_on_top_is_left_out(tmp_path: Path, whole: str) -> None:
    config = (TEXTS["bert"] if whole.startswith("Bert") else PICTURES["vit"])()
    model = getattr(transformers, whole)(config)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    side = "text" if whole.startswith("Bert") else "image"
    before = torch.random.get_rng_state()
    held = Pretrained.load(EncoderChoice(**{f"{side}_encoder": f"transformers:{tmp_path}"}))
    assert torch.equal(before, torch.random.get_rng_state())
    expected = model.base_model.state_dict()
    assert {f"{side}.net.{name}" for name in expected} == set(held.weights)
    for name, value in expected.items():
        assert torch.equal(held.weights[f"{side}.net.{name}"], value), name


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, TEXTS["bert"]())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    choice = EncoderChoice(text_encoder=f"transformers:{tmp_path}")
    path.write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(DataError, match=r"16 missing \(encoder\.layer\.2\."):
        Pretrained.load(choice)
    path.write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(DataError, match=r"is \(32,\), expected \(64,\)"):
        Pretrained.load(choice)


@torch.no_grad()
def test_mirror_and_pooling_may_be_overridden(folders: Any) -> None:
    folder, plain = folders("vit")
    choice = EncoderChoice(
        image_encoder=f"transformers:{folder}?mirror=1&pooling=mean&mean=0&std=1"
    )
    model = Pretrained.load(choice).model(0)
    shown = pixels() / 255.0
    expected = sum(
        plain(pixel_values=one).last_hidden_state.mean(1) for one in (shown, shown.flip(3))
    )
    close(model.image_features(pixels()), expected / 2)


def test_a_text_may_be_cut_shorter(folders: Any) -> None:
    choice = EncoderChoice(
        text_encoder=f"transformers:{folders('bert')[0]}?max_tokens=5&pooling=cls"
    )
    held = Pretrained.load(choice)
    assert (held.settings.max_tokens, held.settings.text_pooling) == (5, "cls")
    ids, _ = held.model(0).tokenizer(SAID)
    assert ids.shape == (6, 5) and held.model(0).tokenizer.cut(SAID) == 2


def test_the_preprocessor_says_how_pictures_are_cut(tmp_path: Path) -> None:
    saved(tmp_path, PICTURES["vit"](), texts=False)
    said = preprocessor(
        do_center_crop=True, crop_size={"height": 32, "width": 32}, size={"shortest_edge": 40}
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said | {"resample": 2}))
    settings = Pretrained.load(EncoderChoice(image_encoder=f"transformers:{tmp_path}")).settings
    assert (settings.image_size, settings.image_crop) == (32, 0.8)
    assert settings.image_resample == "bilinear"


# --- joint models


@pytest.mark.parametrize("kind", JOINT)
@torch.no_grad()
def test_a_joint_model_embeds_as_the_whole_does(folders: Any, kind: str) -> None:
    folder, plain = folders(kind)
    held = Pretrained.load(EncoderChoice(joint_encoder=f"transformers:{folder}"))
    model = held.start(TrainingSettings(towers=held.settings))
    ids, mask = model.tokenizer(SAID)
    seen = {"input_ids": ids, "pixel_values": prepared(pixels())}
    if kind == "siglip":
        assert held.settings.pad_to_max and ids.shape[1] == 24
    else:
        seen["attention_mask"] = mask
    whole = plain(**seen)
    close(model.encode_image(pixels()), normalize(whole.image_embeds))
    close(model.encode_text(ids, mask), normalize(whole.text_embeds))
    scale = plain.logit_scale if kind != "align" else -plain.temperature.log()
    close(model.logit_scale, scale.reshape(1))
    if kind == "siglip":
        close(model.logit_bias, plain.logit_bias.reshape(1))


def test_another_width_starts_projections_from_nothing(folders: Any) -> None:
    folder, _ = folders("clip")
    held = Pretrained.load(EncoderChoice(joint_encoder=f"transformers:{folder}", dim=8))
    assert held.settings.dim == 8
    assert not [name for name in held.weights if "head" in name]
    assert held.model(0).encode_image(pixels()).shape == (6, 8)


def test_what_is_no_joint_model_is_refused(folders: Any) -> None:
    folder, _ = folders("bert")
    with pytest.raises(UsageError, match="not a joint model") as caught:
        Pretrained.load(EncoderChoice(joint_encoder=f"transformers:{folder}"))
    assert "clip" in caught.value.hint
    with pytest.raises(UsageError, match="both towers"):
        Pretrained.load(
            EncoderChoice(joint_encoder="transformers:x", text_encoder="transformers:y")
        )


# --- training and releasing

PAIRINGS = [*zip(("bert", "roberta", "distilbert", "mpnet", "bert"), PICTURES, strict=True)]
CHOICES = [*PAIRINGS, *((kind, kind) for kind in JOINT)]


def choice_of(folders: Any, text: str, image: str) -> EncoderChoice:
    if text == image:
        return EncoderChoice(joint_encoder=f"transformers:{folders(text)[0]}")
    return EncoderChoice(
        text_encoder=f"transformers:{folders(text)[0]}",
        image_encoder=f"transformers:{folders(image)[0]}",
        dim=16,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("text", "image"), CHOICES)
def test_every_family_trains_and_is_released(
    folders: Any, tmp_path: Path, text: str, image: str, mode: str
) -> None:
    held = Pretrained.load(choice_of(folders, text, image))
    model, settings = train(held, mode)
    begun = held.start(settings)
    before, after = arrays_of(begun), arrays_of(model)
    assert set(before) == set(after)
    heads = {"image_head.linear.weight", "text_head.linear.weight"}
    backbones = {name for name in after if name.startswith(("image.", "text."))}
    assert heads <= set(after) and not [name for name in after if name.endswith(STATISTICS)]
    if mode == "full":
        assert len(backbones) == len(list(begun.image.parameters())) + len(
            list(begun.text.parameters())
        )
    if mode == "heads":
        assert not backbones
    if "lora" in mode:
        assert backbones and all("lora_" in name for name in backbones)
        assert any("lora_A" in name for name in backbones) == (mode == "lora")
    learned = {name for name in after if not np.array_equal(after[name], before[name])}
    assert heads <= learned
    assert mode == "heads" or any(name in learned for name in backbones if "lora_A" not in name)
    # Everything else is bit-equal: frozen weights, matrices A, and statistics of batches.
    state, start = model.state_dict(), begun.state_dict()
    for name, value in state.items():
        if name not in learned:
            assert torch.equal(value, start[name]), name

    seen = embedded(model)
    merged = merge(model)
    close(embedded(merged), seen)
    release = write_release(tmp_path, merged, {})
    again = read_release(release.path).load()
    assert torch.equal(embedded(again), embedded(merged))
    assert again.settings == held.settings


def test_averages_of_ffa_lora_are_exact(folders: Any) -> None:
    """The mean of the B makes the mean of the changed weights; with A learned it does not."""
    held = Pretrained.load(choice_of(folders, "bert", "vit"))

    def spread(mode: str) -> float:
        models = [train(held, mode, 8, loss=loss)[0] for loss in ("info-nce", "max-margin")]
        arrays = [arrays_of(model) for model in models]
        average, _ = train(held, mode)
        mean = {name: (arrays[0][name] + arrays[1][name]) / 2 for name in arrays[0]}
        load_arrays(average, mean)
        merged = [
            {name: value for name, value in merge(one).state_dict().items() if value.ndim == 2}
            for one in (*models, average)
        ]
        return max(
            float(((merged[0][name] + merged[1][name]) / 2 - merged[2][name]).abs().max())
            for name in merged[0]
        )

    assert spread("ffa-lora") < 1e-6 < 1e-5 < spread("lora")


def test_low_rank_changes_are_the_same_at_every_party(folders: Any) -> None:
    held = Pretrained.load(choice_of(folders, "bert", "vit"))
    settings = TrainingSettings(train="ffa-lora", lora_modules="query,value", towers=held.settings)
    first, again = held.start(settings), held.start(settings)
    assert torch.equal(embedded(first), embedded(held.model(settings.seed))), "B begins with zero"
    pairs = zip(first.state_dict().items(), again.state_dict().items(), strict=True)
    assert all(one[0] == two[0] and torch.equal(one[1], two[1]) for one, two in pairs)
    names = {name for name in arrays_of(first) if "lora_" in name}
    assert names and all(".query." in name or ".value." in name for name in names)
    with pytest.raises(UsageError, match="no layer"):
        held.start(replace(settings, lora_modules="nothing"))


# --- torchvision

WIDTHS = {
    "resnet18": 512,
    "resnet50": 2048,
    "vit_b_16": 768,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 1024,
    "efficientnet_b0": 1280,
    "convnext_tiny": 768,
    "swin_t": 768,
}


@pytest.mark.parametrize(("name", "width"), WIDTHS.items())
@torch.no_grad()
def test_torchvision_gives_what_its_classifier_reads(name: str, width: int) -> None:
    settings = TowerSettings(image_encoder=f"torchvision:{name}", image_size=64)
    mine = TorchvisionImage(settings).eval()
    sizes = {"image_size": 64} if name == "vit_b_16" else {}
    whole = vision.get_model(name, weights=None, **sizes).eval()
    loaded = whole.load_state_dict(mine.net.state_dict(), strict=False)
    assert not loaded.unexpected_keys and len(loaded.missing_keys) == 2  # the last linear layer
    read: list[torch.Tensor] = []
    last = [one for one in whole.modules() if isinstance(one, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    shown = prepared(pixels(2, 64))
    whole(shown)
    assert mine.width == width
    close(mine(shown), read[0])


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """Weights of MobileNetV3 in a file, and the model that they are of."""
    torch.manual_seed(3)
    model = vision.mobilenet_v3_small(weights=None).eval()
    path = tmp_path_factory.mktemp("weights") / "mobilenet.safetensors"
    save_file(model.state_dict(), path)
    return path, model


def of_file(path: Path, query: str = "", name: str = "mobilenet_v3_small") -> EncoderChoice:
    return EncoderChoice(image_encoder=f"torchvision:{name}{query}", image_weights=str(path))


@torch.no_grad()
def test_weights_from_a_file_are_those_of_the_model(mobilenet: tuple[Path, nn.Module]) -> None:
    path, whole = mobilenet
    held = Pretrained.load(of_file(path, "?size=64"))
    assert held.settings.image_size == 64 and len(held.settings.image_weights) == 64
    model = held.model(0)
    level, spread = (
        torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    shown = (pixels(2, 64) / 255.0 - level) / spread
    expected = whole.classifier[:3](whole.avgpool(whole.features(shown)).flatten(1))
    close(model.image_features(pixels(2, 64)), expected)


def test_weights_that_do_not_fit_are_named(
    mobilenet: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path, whole = mobilenet
    with pytest.raises(
        DataError, match=r"102 missing \(bn1\.bias, .*unknown \(classifier\.0\.bias, "
    ):
        Pretrained.load(of_file(path, name="resnet18"))
    state = whole.state_dict()
    wrong = state | {"features.0.0.weight": torch.zeros(16, 4, 3, 3), "extra": torch.zeros(2)}
    del wrong["classifier.0.bias"]
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(DataError) as caught:
        Pretrained.load(of_file(tmp_path / "wrong.safetensors"))
    for name in ("classifier.0.bias", "extra", "features.0.0.weight is (16, 4, 3, 3)"):
        assert name in caught.value.message
    for content in (b"", b"\x80\x04pickle", path.read_bytes()[:-9]):
        (tmp_path / "damaged.safetensors").write_bytes(content)
        with pytest.raises(DataError, match="safetensors"):
            Pretrained.load(of_file(tmp_path / "damaged.safetensors"))
    with pytest.raises(DataError, match="nowhere"):
        Pretrained.load(of_file(tmp_path / "nowhere.safetensors"))


def test_a_file_may_say_how_it_wants_its_pictures(
    mobilenet: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "said.safetensors"
    said = {"input": "RGB 224, x/127.5-1", "arch": "torchvision mobilenet_v3_small, SAME padding"}
    save_file(mobilenet[1].state_dict(), path, said)
    settings = Pretrained.load(of_file(path)).settings
    assert (settings.image_size, settings.image_crop) == (224, 0)
    assert settings.image_mean == settings.image_std == (0.5, 0.5, 0.5)
    assert settings.image_padding == "same"
    changed = Pretrained.load(
        of_file(path, "?size=96&mirror=1&padding=symmetric&mean=0.4")
    ).settings
    assert (changed.image_size, changed.image_mirror) == (96, True)
    assert (changed.image_padding, changed.image_mean) == ("symmetric", (0.4, 0.4, 0.4))


def _same(shown: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's SAME, window by window: ceil(size / stride) of them, the odd pixel behind."""
    count, size = math.ceil(shown.shape[2] / stride), weight.shape[2]
    missing = max(0, (count - 1) * stride + size - shown.shape[2])
    before = missing // 2
    out = np.zeros((len(shown), len(weight), count, count))
    for row in range(count):
        for column in range(count):
            for y in range(size):
                for x in range(size):
                    down, across = row * stride + y - before, column * stride + x - before
                    if 0 <= down < shown.shape[2] and 0 <= across < shown.shape[3]:
                        out[:, :, row, column] += shown[:, :, down, across] @ weight[:, :, y, x].T
    return out


@pytest.mark.parametrize("side", [32, 33])
@torch.no_grad()
def test_same_padding_is_tensorflows(side: int) -> None:
    """Of a stem with a stride of two, and of every convolution with a stride by its windows."""
    settings = TowerSettings(
        image_encoder="torchvision:mobilenet_v3_small", image_size=side, image_padding="same"
    )
    net = TorchvisionImage(settings).eval().net
    plain = vision.mobilenet_v3_small(weights=None)
    strided = [
        name
        for name, one in plain.named_modules()
        if isinstance(one, nn.Conv2d) and one.stride == (2, 2)
    ]
    by_window = {plain.get_submodule(name).kernel_size[0]: name for name in reversed(strided)}
    assert set(by_window) == {3, 5}
    for name in by_window.values():
        conv, generator = net.get_submodule(name), torch.Generator().manual_seed(0)
        channels = conv.weight.shape[1] * conv.groups
        shown = torch.randn(2, channels, side, side, generator=generator)
        weight = conv.weight
        if conv.groups > 1:  # one filter a channel, as a full matrix
            weight = torch.zeros(channels, channels, *weight.shape[2:])
            weight[range(channels), range(channels)] = conv.weight[:, 0]
        expected = _same(shown.double().numpy(), weight.double().numpy(), 2)
        np.testing.assert_allclose(conv(shown).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_statistics_of_batches_neither_change_nor_travel(
    mobilenet: tuple[Path, nn.Module], mode: str
) -> None:
    path, whole = mobilenet
    model, _ = train(Pretrained.load(of_file(path, "?size=32")), mode)
    model.train()
    assert not any(one.training for one in model.modules())
    assert not [name for name in arrays_of(model) if name.endswith(STATISTICS)]
    found = merge(model).state_dict()
    statistics = [name for name in whole.state_dict() if name.endswith(STATISTICS)]
    assert statistics
    for name in statistics:
        assert torch.equal(found[f"image.net.{name}"], whole.state_dict()[name]), name


# --- what is refused


@pytest.mark.parametrize(
    ("choice", "said", "hint"),
    [
        (EncoderChoice(image_encoder="torchvision:resnet81"), "resnet81", "torchvision:resnet18"),
        (EncoderChoice(image_encoder="timm:x"), "timm:x", "torchvision:NAME"),
        (EncoderChoice(text_encoder="torchvision:resnet18"), "resnet18", "transformers:FOLDER"),
        (EncoderChoice(text_encoder="transformers:"), "transformers:", "transformers:FOLDER"),
        (EncoderChoice(image_encoder="scratch?size=big"), "size=big", "max_tokens"),
        (EncoderChoice(image_encoder="scratch?colour=1"), "colour=1", "mirror"),
        (EncoderChoice(image_encoder="scratch?mirror=2"), "mirror=2", "mirror"),
        (EncoderChoice(image_weights="x.safetensors"), "scratch", "torchvision:NAME"),
    ],
)
def test_names_that_are_not_known(choice: EncoderChoice, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Pretrained.load(choice)
    assert said in caught.value.message and hint in caught.value.hint


def test_a_hub_name_that_is_not_here_says_how_to_give_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for choice in (
        EncoderChoice(text_encoder="transformers:nobody/nothing-of-this-name"),
        EncoderChoice(joint_encoder="transformers:nobody/nothing-of-this-name"),
    ):
        with pytest.raises(DataError, match="not in the local cache") as caught:
            Pretrained.load(choice)
        assert "local folder" in caught.value.hint and "--download" in caught.value.hint
    with pytest.raises(DataError, match="no such folder"):
        Pretrained.load(EncoderChoice(text_encoder=f"transformers:{tmp_path}/nothing"))


def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path) -> None:
    saved(tmp_path, TEXTS["bert"]())
    (tmp_path / "model.safetensors").unlink()
    trap = tmp_path / "trapped"
    code = f"c__builtin__\nopen\n(V{trap}\nVw\ntR."
    (tmp_path / "pytorch_model.bin").write_bytes(code.encode())
    with pytest.raises(DataError, match="pickled"):
        Pretrained.load(EncoderChoice(text_encoder=f"transformers:{tmp_path}"))
    assert not trap.exists()


def test_a_model_with_code_of_its_own_is_refused_and_never_run(tmp_path: Path) -> None:
    saved(tmp_path, TEXTS["bert"]())
    trap = tmp_path / "trapped"
    (tmp_path / "own.py").write_text(f"open({str(trap)!r}, 'w')\nclass Own: pass\n")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"auto_map": {"AutoConfig": "own.Own"}}))
    with pytest.raises(UsageError, match="code of its own"):
        Pretrained.load(EncoderChoice(text_encoder=f"transformers:{tmp_path}"))
    assert not trap.exists()


@pytest.mark.parametrize(
    "claim",
    [
        {"num_hidden_layers": 1_000_000},
        {"hidden_size": 1 << 40},
        {"vocab_size": -(1 << 30)},
        {"hidden_size": 1e300},
        {"num_attention_heads": 0},
        {"quantization_config": {"quant_method": "x"}},
    ],
)
def test_a_configuration_that_claims_too_much_is_refused_quickly(
    tmp_path: Path, claim: dict[str, Any]
) -> None:
    saved(tmp_path, TEXTS["bert"]())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | claim))
    began = time.monotonic()
    with pytest.raises(BlindsightError):
        Pretrained.load(EncoderChoice(text_encoder=f"transformers:{tmp_path}"))
    values = json.dumps({"hidden_size": 16} | claim)
    with pytest.raises(MalformedMessage):
        TwoTowers(TowerSettings(text_encoder="transformers:bert", text_config=values))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 20, b"[" * 100_000])
def test_files_that_are_damaged_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes
) -> None:
    saved(tmp_path, TEXTS["distilbert"]())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        Pretrained.load(EncoderChoice(text_encoder=f"transformers:{tmp_path}"))
    assert str(tmp_path) in caught.value.message and caught.value.hint


def test_parties_with_other_encoders_do_not_agree(folders: Any, tmp_path: Path) -> None:
    held = Pretrained.load(choice_of(folders, "bert", "vit"))
    assert held.agree(held.settings).settings == held.settings
    saved(tmp_path, PICTURES["vit"](), seed=1, texts=False)
    other = Pretrained.load(
        replace(choice_of(folders, "bert", "vit"), image_encoder=f"transformers:{tmp_path}")
    )
    with pytest.raises(DataError, match="other encoders than the run builds on: image_weights"):
        other.agree(held.settings)
    with pytest.raises(DataError, match="other encoders"):
        Pretrained.load(EncoderChoice()).agree(held.settings)
