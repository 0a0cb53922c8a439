"""The model card: what the Hub shows, and what licence it records."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from lorentzkit.clip.configuration import HyperbolicCLIPConfig

TEXT = """\
# Hyperbolic CLIP, objective "{objective}"

Images and texts as {space} of dimension {dim}.
{origin}
```bash
pip install 'lorentzkit[clip]'
```

```python
from lorentzkit.clip import HyperbolicCLIPModel, HyperbolicCLIPProcessor

model = HyperbolicCLIPModel.from_pretrained("PATH_OR_NAME")
processor = HyperbolicCLIPProcessor.from_pretrained("PATH_OR_NAME")
found = model(**processor(text=["a dog", "a cat"], images=image, return_tensors="pt"))
found.logits_per_image.softmax(-1)
```
"""


def write_card(
    folder: str | os.PathLike[str],
    config: HyperbolicCLIPConfig,
    *,
    license: str | None = None,
    origin: str = "",
) -> None:
    """README.md in a model's folder, unless there is one."""
    file = Path(folder) / "README.md"
    if file.exists() or not file.parent.is_dir():
        return
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["hyperbolic", "lorentzkit", config.objective],
    )
    space = "unit vectors" if config.objective == "clip" else "points on the hyperboloid"
    text = TEXT.format(
        objective=config.objective, space=space, dim=config.projection_dim, origin=origin
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(file)
