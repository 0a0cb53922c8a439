"""The towers of a hyperbolic CLIP: models of transformers, and the one feature each gives."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, ViTConfig, ViTModel
from transformers import initialization as init


class FixedPositionsViT(ViTModel):
    """The ViT of transformers, with positions that are sines and cosines, and fixed."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.embeddings:
            positions = self.embeddings.position_embeddings
            init.copy_(positions, sin_cos(self.config).to(positions))


def sin_cos(config: Any) -> Tensor:
    """Positions ``(1, 1 + patches, width)``: zeros for the class token, then sines and cosines.

    A quarter of the channels each: sines and cosines of the row, sines and cosines of the column.
    """
    side, width = config.image_size // config.patch_size, config.hidden_size
    places = torch.arange(side, dtype=torch.float32, device="cpu")
    rates = torch.arange(width // 4, dtype=torch.float32, device="cpu") / (width // 4)
    waves = places[:, None] * (1.0 / 10_000**rates)
    line = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    grid = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros(1, width, device="cpu"), grid])[None]


def vision_tower(config: Any) -> Any:
    """A new image tower, or one to load weights into."""
    if isinstance(config, ViTConfig):
        return FixedPositionsViT(config, add_pooling_layer=False)
    tower = AutoModel.from_config(config)
    if groups := getattr(config, "norm_groups", None):
        _group_norms(tower, groups)
    return tower


def text_tower(config: Any) -> Any:
    """A new text tower, or one to load weights into."""
    return AutoModel.from_config(config)


Source = str | os.PathLike[str]
Config = dict[str, Any] | PreTrainedConfig


def tower_config(source: Source | Config, kind: str, local_files_only: bool) -> Config:
    """That of the "vision" or "text" tower in a folder or on the Hub, of two towers or one."""
    if isinstance(source, (dict, PreTrainedConfig)):
        return source
    config = AutoConfig.from_pretrained(source, local_files_only=local_files_only)
    tower: PreTrainedConfig = getattr(config, f"{kind}_config", config)
    return tower


def load_tower(tower: Any, source: Source, local_files_only: bool) -> None:
    """Pretrained weights into a tower made with their configuration, in the tower's own dtype."""
    unpooled = {"add_pooling_layer": False} if isinstance(tower, FixedPositionsViT) else {}
    loaded, info = AutoModel.from_pretrained(
        source,
        config=tower.config,
        local_files_only=local_files_only,
        use_safetensors=True,
        output_loading_info=True,
        **unpooled,
    )
    # A text's feature is of the last states, before any pooler.
    missing = [x for x in info["missing_keys"] if x.split(".")[0] != "pooler"]
    if missing:
        raise ValueError(
            f"{source}: expected the weights of a {type(loaded).__name__}, which lacks {missing}"
        )
    tower.load_state_dict(loaded.state_dict())


def _group_norms(module: nn.Module, groups: int) -> None:
    """GroupNorm for each batch norm: an image's point no longer depends on its batch."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(groups, child.num_features))
        else:
            _group_norms(child, groups)


def width(config: Any) -> int:
    """The size of a tower's feature."""
    size: int = config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size
    return size


def image_feature(tower: Any, pixel_values: Tensor) -> Tensor:
    """What the tower pools, ``(M, width)``; the class token where it pools nothing."""
    output = tower(pixel_values=pixel_values)
    pooled: Tensor | None = output.pooler_output
    if pooled is None:
        pooled = output.last_hidden_state[:, 0]
    return pooled.flatten(1)


def text_feature(tower: Any, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The state at the end of each text, ``(N, width)``; with a mask, the mean of its states."""
    states: Tensor = tower(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    if attention_mask is None:
        end = input_ids.argmax(-1)
        return states[torch.arange(len(end), device=end.device), end]
    weight = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)  # a text may have no token
