"""Facts about mini's tokenizer."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from videogen.config import UserError
from videogen.data import prepare
from videogen.data.diorama import VOCABULARY
from videogen.data.tokenizer import merges_for, write_tokenizer

CAPTIONS = [
    "a red ball bounces slowly over a meadow at sunset, in the rain, while the camera pans left",
    "the purple star spins quickly; it's snowing in the mountains at night",
    "a box rests, a ring rises and a triangle falls by the sea",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, CAPTIONS)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def test_every_word_of_the_vocabulary_is_one_token(tokenizer: CLIPTokenizer) -> None:
    for word in " ".join(CAPTIONS).replace(",", " ").replace(";", " ").replace("'s", " ").split():
        assert tokenizer.tokenize(word) == [word + "</w>"]


@pytest.mark.parametrize("text", [*CAPTIONS, "ein grüner würfel 42 über dem nordmeer", "a 🎈 over the 山"])
def test_any_text_survives_the_round_trip(tokenizer: CLIPTokenizer, text: str) -> None:
    decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_foreign_text_becomes_pieces_and_nothing_is_unknown(tokenizer: CLIPTokenizer) -> None:
    for text in ("🎈", "山", "é", "\u200b", "xylophone"):
        ids = tokenizer(text).input_ids[1:-1]
        assert ids
        assert tokenizer.eos_token_id not in ids


def test_ten_thousand_characters_are_cut_and_a_short_text_is_padded_to_forty(tokenizer: CLIPTokenizer) -> None:
    for text in ("ball " * 2000, "🎈" * 10_000, "", "ball"):
        ids = tokenizer(text, padding="max_length", truncation=True).input_ids
        assert len(ids) == tokenizer.model_max_length == 40
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_the_marks_have_the_last_two_ids_and_ids_have_no_gaps(tokenizer: CLIPTokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(tokenizer)))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (len(tokenizer) - 2, len(tokenizer) - 1)


def test_case_and_spacing_do_not_matter(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer("A  Red\n BALL").input_ids == tokenizer("a red ball").input_ids


def test_the_same_words_give_the_same_folder_in_any_order(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, [*reversed(CAPTIONS), CAPTIONS[0]])
    names = sorted(file.name for file in folder.iterdir())
    assert names == sorted(file.name for file in tmp_path.iterdir())
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_no_merges_are_needed_for_single_letters() -> None:
    assert merges_for(["a", "b"]) == []
    assert merges_for(["ab"]) == [("a", "b</w>")]


def test_every_word_of_dioramas_vocabulary_is_one_token(tmp_path: Path) -> None:
    prepare.write_tokenizer(tmp_path / "new" / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "new" / "tokenizer")
    assert all(tokenizer.tokenize(word) == [word + "</w>"] for word in VOCABULARY)
    assert len(tokenizer) < 2000


def test_an_output_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the tokenizer to"):
        prepare.write_tokenizer(tmp_path / "file" / "tokenizer")
