"""Presidio as a scorer: its confidences, offline; what a user gets wrong is one line."""

import socket
import sys

import pytest

from distill_core.config import InputError
from swingdistill import train
from swingdistill.recognisers import presidio

TEXT = "write to ann@example.org from ward 12, says Ann Lee"
CONFIGURATION = """
supported_languages: [en]
nlp_configuration:
  nlp_engine_name: no_op
  models:
    - {lang_code: en, model_name: no_op}
recognizer_registry:
  recognizers:
    - {name: EmailRecognizer, type: predefined}
    - name: Ward
      type: custom
      supported_entity: WARD
      supported_languages: [en]
      patterns: [{name: ward, regex: 'ward [0-9]+', score: 0.65}]
"""
MISSING = "nlp_engine_name: spacy\nmodels:\n  - {lang_code: en, model_name: en_core_web_none}\n"


def test_without_the_extra_a_user_is_told_what_to_install(values, monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    hp = values(teacher="given", scorers=("rules", "presidio"), presidio="en_core_web_sm")
    with pytest.raises(InputError) as error:
        train.check(hp)
    assert error.value.field == "scorers"
    assert "pip install 'guarded-distillation[pii]'" in str(error.value)


@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip("presidio_analyzer")

    def refused(*args, **kwargs):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.mark.filterwarnings("ignore")
def test_scores_are_presidios_confidences(offline, tmp_path):
    (tmp_path / "presidio.yaml").write_text(CONFIGURATION)
    found = presidio.analyser(str(tmp_path / "presidio.yaml"))(TEXT)
    shown = [(TEXT[each.start : each.end], each.score, each.kind) for each in found]
    assert shown == [("ann@example.org", 1.0, "EMAIL_ADDRESS"), ("ward 12", 0.65, "WARD")]


@pytest.mark.filterwarnings("ignore")
def test_a_spacy_model_finds_names(offline, tmp_path):
    import spacy

    model = spacy.blank("en")
    ruler = model.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Ann Lee"}])
    model.to_disk(tmp_path / "en_ours")
    found = presidio.analyser(str(tmp_path / "en_ours"))(TEXT)
    assert ("PERSON", "Ann Lee") in {(each.kind, TEXT[each.start : each.end]) for each in found}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.yaml", None, "cannot be read"),
        ("bad.yaml", "a: [", "must be YAML"),
        ("list.yaml", "- a", "settings by name"),
        ("stanza.yaml", "nlp_engine_name: stanza", "nlp_engine_name, of spacy"),
        ("missing.yaml", MISSING, "en_core_web_none, which is not installed"),
        ("en_core_web_none", None, "en_core_web_none, which is not installed"),
    ],
)
def test_what_cannot_be_loaded_is_refused_without_asking_the_network(
    offline, tmp_path, name, content, said
):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        presidio.analyser(str(path) if "." in name else name)
    assert error.value.field == "presidio"
    assert said in str(error.value) and "\n" not in str(error.value)
