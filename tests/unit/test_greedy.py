"""Greedy generation equals transformers' token for token."""

from pathlib import Path

from tests.support.greedy_case import STOP, of_the_training_engine, of_transformers, save_model


def test_greedy_equals_transformers_on_prompts_of_mixed_length(tmp_path: Path) -> None:
    save_model(tmp_path)
    expected = of_transformers(tmp_path)
    assert of_the_training_engine(tmp_path, tensor=1) == expected
    assert 20 < sum(ids[-1] == STOP for ids in expected) < 180
    assert len(set(expected)) > 100
