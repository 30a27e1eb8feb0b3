"""What of a model learns: everything, the projections, or low-rank changes of the backbones.

LoRA (Hu et al., arXiv:2106.09685) is peft's. With FFA-LoRA (Sun et al., arXiv:2403.12313) the
matrices A stay as every party draws them from the seed and only B learns: the mean of the
products is then the product of the means, so averaging is exact.
"""

import copy

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from protocol.errors import UsageError
from protocol.model.settings import TrainingSettings
from protocol.model.towers import TwoTowers, construction

_BACKBONES = ("image.", "text.")


def set_trainable(model: TwoTowers, settings: TrainingSettings) -> TwoTowers:
    """Marks what learns, as ``settings.train`` says, adding adapters where it asks for them.

    The same settings give the same adapters at every party. Raises UsageError where no module of
    the model bears a name of ``settings.lora_modules``.
    """
    model.requires_grad_(settings.train == "full")
    if settings.train in ("lora", "ffa-lora"):
        _add_lora(model, settings)
    for name, value in model.named_parameters():
        if not name.startswith(_BACKBONES):
            value.requires_grad_(True)
        elif "lora_" in name:
            value.requires_grad_(settings.train == "lora" or "lora_B" in name)
    model.eval()
    return model


def twin(model: TwoTowers) -> TwoTowers:
    """A copy that learns by itself, and shares with ``model`` what does not learn."""
    shared: dict[int, object] = {id(model.tokenizer): model.tokenizer}
    for part in (model.image, model.text):
        if any(value.requires_grad for value in part.parameters()):
            shared |= {id(one): one for one in part.parameters() if not one.requires_grad}
        else:
            shared[id(part)] = part
    return copy.deepcopy(model, shared)


def merge(model: TwoTowers) -> TwoTowers:
    """Folds adapters into the weights that they change."""
    for path, one in list(model.named_modules()):
        if isinstance(one, BaseTunerLayer):
            # A copy, for twins share these weights and peft adds to them in place.
            base: nn.Module = one.get_base_layer()
            base.weight = nn.Parameter(base.get_parameter("weight").detach().clone())
            one.merge()
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, one.get_base_layer())
    return model


def _add_lora(model: TwoTowers, settings: TrainingSettings) -> None:
    for side in (model.image, model.text):
        modules: str | list[str] = settings.lora_modules
        if settings.lora_modules == "all-linear":
            modules = [name for name, one in side.named_modules() if isinstance(one, nn.Linear)]
        else:
            wanted = settings.lora_modules.split(",")
            modules = [
                name
                for name, one in side.named_modules()
                if isinstance(one, nn.Linear | nn.Conv2d) and name.split(".")[-1] in wanted
            ]
        if not modules:
            continue
        config = LoraConfig(
            r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules=modules
        )
        with construction, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            inject_adapter_in_model(config, side)
    if not any("lora_" in name for name, _ in model.named_parameters()):
        raise UsageError(
            f"no layer of these encoders is called {settings.lora_modules}",
            "Name linear layers, such as query,value, or all-linear.",
        )
