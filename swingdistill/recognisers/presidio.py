"""Microsoft Presidio as a recogniser, offline: the extra `pii`.

Names and places are found by whatever model the user has configured there, each with Presidio's own
confidence. Nothing is downloaded.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from distill_core.config import InputError
from distill_core.data.text.lines import Span

_MISSING = "needs the extra pii, which is not installed: pip install 'guarded-distillation[pii]'"
_ENGINES = ("spacy", "slim", "transformers", "no_op")  # Stanza's would ask the network


def check(configuration: str | None):
    """Refuses what cannot be loaded without loading it: InputError on `scorers` or `presidio`."""
    try:
        import presidio_analyzer  # noqa: F401
    except ImportError:
        raise InputError("scorers", "presidio", _MISSING) from None
    if configuration is None:
        allowed = (
            "the scorer presidio needs Presidio's YAML configuration (a PATH) or the name of an "
            "installed spaCy model"
        )
        raise InputError("presidio", None, allowed)


def analyser(configuration: str) -> Callable[[str], list[Span]]:
    """A function that finds the private stretches of a text.

    Args:
      configuration: the PATH of a YAML file, of Presidio's analyzer or of its NLP engine alone; or
        a spaCy model, by the name of its package or the PATH of its folder.

    Returns:
      text -> stretches whose score is Presidio's confidence and whose kind its entity type.

    Raises:
      InputError: on `scorers` without the extra; on `presidio`, if there is no such file, model or
        engine, or Presidio refuses the configuration.
    """
    check(configuration)
    import presidio_analyzer
    import tldextract.tldextract

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # Presidio asks it what a top-level domain is, and it would ask the network for the newest list.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(None, suffix_list_urls=())
    try:
        engine = _engine(presidio_analyzer, configuration)
    except InputError:
        raise
    except (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise InputError("presidio", configuration, f"Presidio refuses it: {error}") from None
    language = engine.supported_languages[0]

    def analyse(text: str) -> list[Span]:
        found = engine.analyze(text, language=language)
        return sorted(Span(r.start, r.end, float(r.score), r.entity_type) for r in found)

    return analyse


def _engine(presidio: Any, configuration: str) -> Any:
    path = epath.Path(configuration)
    if path.is_dir() or path.suffix not in (".yaml", ".yml"):
        _check_model(configuration, configuration)
        language = path.name[:2]
        models = [{"lang_code": language, "model_name": configuration}]
        nlp = {"nlp_engine_name": "spacy", "models": models}
        made = presidio.nlp_engine.NlpEngineProvider(nlp_configuration=nlp).create_engine()
        return presidio.AnalyzerEngine(nlp_engine=made, supported_languages=[language])
    settings = _read(path)
    alone = "nlp_engine_name" in settings
    nlp = settings if alone else settings.get("nlp_configuration")
    if not isinstance(nlp, Mapping) or nlp.get("nlp_engine_name") not in _ENGINES:
        allowed = f"must name an NLP engine, nlp_engine_name, of {', '.join(_ENGINES)}"
        raise InputError("presidio", configuration, allowed)
    for model in nlp.get("models") or []:
        name = model.get("model_name")
        name = name.get("spacy") if isinstance(name, Mapping) else name
        if nlp["nlp_engine_name"] != "no_op":
            _check_model(configuration, str(name))
    file = "nlp_engine_conf_file" if alone else "analyzer_engine_conf_file"
    return presidio.AnalyzerEngineProvider(**{file: str(path)}).create_engine()


def _read(path: epath.Path) -> Mapping[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError("presidio", str(path), f"cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("presidio", str(path), f"must be YAML: {error}") from None
    if not isinstance(settings, Mapping):
        raise InputError("presidio", str(path), "must be a YAML file of settings by name")
    return settings


def _check_model(configuration: str, name: str):
    """Refuses a spaCy model that Presidio would download."""
    import spacy

    if not (spacy.util.is_package(name) or epath.Path(name).is_dir()):
        allowed = f"needs the spaCy model {name}, which is not installed; nothing is downloaded"
        raise InputError("presidio", configuration, allowed)
