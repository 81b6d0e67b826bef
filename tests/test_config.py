"""Recipes: one may be like another, and says only what differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from videogen.config import read_recipe


def test_a_recipe_that_is_like_another_has_its_values_but_those_it_names(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'like = "mini/base"\n[network]\nblock_out_channels = [32, 32, 32]\n[data]\nonly = { motion = ["rises"] }\n'
    )
    (tmp_path / "shorter.toml").write_text('like = "mine.toml"\n[loop]\nsteps = 7\n')
    base, mine, shorter = (read_recipe(name) for name in ("mini/base", tmp_path / "mine.toml", tmp_path / "shorter.toml"))
    network = {**base.network, "block_out_channels": [32, 32, 32]}
    data = dataclasses.replace(base.data, only={"motion": ("rises",)})
    assert mine == dataclasses.replace(base, network=network, data=data)
    assert shorter == dataclasses.replace(mine, loop=dataclasses.replace(mine.loop, steps=7))


def test_a_table_within_a_table_is_one_value(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('like = "mini/base_left_right"\n[data]\nonly = { speed = ["slowly"] }\n')
    assert read_recipe("mini/base_left_right").data.only.keys() > {"motion"}
    assert read_recipe(tmp_path / "mine.toml").data.only == {"speed": ("slowly",)}
