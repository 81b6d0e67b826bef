"""What the states of a text encoder still say of Diorama's captions, and how loudly.

The states are all that the networks get to know of a prompt. Accuracy: of linear readers of their mean, fitted on 2,000
captions and tested on 500. Share: how much of the variance of their mean lies between the classes of an attribute; a network
hardly finds what a reader of standardised means finds, if the share is small (docs/log.md). Beside them the same for plain
word vectors, drawn at random: what a mean can tell at all.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
import torch.nn.functional as F
from measuring import parser, report
from torch import Tensor

from videogen.data.diorama import Diorama, Labels, caption
from videogen.models.pretrained import load_text, pipeline_folder
from videogen.stages.conditions import encode_text

CAPTIONS, FITTED = 2500, 2000


def accuracy(means: Tensor, labels: Tensor) -> float:
    """Of softmax regression on standardised means (N, D)."""
    means = (means - means[:FITTED].mean(0)) / means[:FITTED].std(0).clamp_min(1e-4)
    weight = torch.zeros(means.shape[1], int(labels.max()) + 1, requires_grad=True)
    optimizer = torch.optim.Adam([weight], 0.02)
    for _ in range(300):
        loss = F.cross_entropy(means[:FITTED] @ weight, labels[:FITTED]) + 3e-4 * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(((means[FITTED:] @ weight).argmax(1) == labels[FITTED:]).float().mean())


def share(means: Tensor, labels: Tensor) -> float:
    """Of the variance of means (N, D), summed over D: what lies between the classes."""
    between = torch.stack([means[labels == label].mean(0) for label in range(int(labels.max()) + 1)])[labels]
    return float(between.var(0).sum() / means.var(0).sum())


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--model", default="mini", help="a pipeline folder, a hub id or mini (default)")
    options = arguments.parse_args()
    torch.manual_seed(0)
    tokenizer, encoder = load_text(pipeline_folder(options.model))
    world = Diorama(64, 16, (4.0,), seed=77)
    shown = [world.labels(index) for index in range(CAPTIONS)]
    said = [caption(labels, np.random.default_rng([77, index])) for index, labels in enumerate(shown)]
    tokens = tokenizer(said, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        states = torch.cat([encode_text(tokenizer, encoder, said[start : start + 100]) for start in range(0, CAPTIONS, 100)])
    words = torch.randn(len(tokenizer), states.shape[2])[tokens.input_ids]
    mask = tokens.attention_mask[..., None]
    means = {name: (each * mask).sum(1) / mask.sum(1) for name, each in (("states", states), ("random words", words))}
    rows = []
    for attribute in (field.name for field in fields(Labels)):
        found = [getattr(labels, attribute) or "" for labels in shown]
        names = sorted(set(found))
        labels = torch.tensor([names.index(each) for each in found])
        row = {"attribute": attribute, "words": len(names), "chance": 1 / len(names)}
        for name, each in means.items():
            row |= {name: accuracy(each, labels), f"share of {name}": share(each, labels)}
        rows.append(row)
    report(rows, options)


if __name__ == "__main__":
    main()
