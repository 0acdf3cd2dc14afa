"""A chain as data: `to_config` writes a transform down in plain dicts, lists and numbers, `from_config` makes it again.

    {"chain": [{"clip_by_global_norm": {"max_norm": 1.0}}, {"adamw": {"weight_decay": 0.1}}]}

A call is a dict of one entry, the name and the arguments. What an argument that is a text or a dict means depends on what the
constructor takes there: a transform, a function, or data.
"""

from functional_optim.config.names import Config, Names, constructors
from functional_optim.config.reading import Reader
from functional_optim.config.writing import Writer
from functional_optim.transform import Transform, require_transform

__all__ = ["Config", "Names", "constructors", "from_config", "to_config"]


def to_config(transform: Transform, names: Names | None = None) -> dict[str, Config]:
    """A transform as plain data, for JSON, YAML or Hydra: `json.dump(to_config(tx), file)`.

    Hyper-parameters are written with their values, options where they differ from their defaults. A function of your own, a
    condition, a schedule, labels, is written by its name; so is a constructor of your own.

    Args:
        transform: anything made by this library's constructors, or by constructors that its decorators have made.
        names: what to call what has no name, or another: `{"mine": lambda step: ...}`. Give the same to `from_config`.

    Returns:
        Dicts with texts as keys, lists, texts, numbers, bools and None. A () tensor is written as the number that it holds.

    Raises:
        TypeError: this is no transform.
        ValueError: something in it can't be written, such as a function without a name. The message says where.

    optax has nothing like it.

    >>> from functional_optim import chain, clip_by_global_norm, linear, scheduled, sgd
    >>> to_config(scheduled(chain(clip_by_global_norm(), sgd()), lr=linear(0.1, 0.0, 100)))["scheduled"]["lr"]
    {'linear': {'start': 0.1, 'end': 0.0, 'steps': 100}}
    """
    require_transform(transform, "to_config(transform)")
    written = Writer(names or {}).written(transform, "")
    return written if isinstance(written, dict) else {written: {}}


def from_config(config: Config, names: Names | None = None) -> Transform:
    """The transform that some data describe: what `to_config` returned, or what a person wrote.

        from_config(json.load(file))
        from_config(yaml.safe_load(file), names={"mine": my_schedule})

    Nothing is imported or looked up by what stands in the data, but the constructors of this library and `names`.

    Args:
        config: a dict of one entry, name to arguments: a dict by name, or a list in order, as the links of a `chain`. A name
            alone is a call without arguments: `"adamw"`. Any mapping is a dict, and any sequence a list, such as OmegaConf's; the
            patterns of `by_name`, whose order counts, may be a list of pairs, so that no tool sorts them.
        names: functions, transforms and constructors of your own, by the names that the data have for them.

    Raises:
        TypeError, ValueError: as the constructor, with the place in the data in front, `chain[2].masked.transform`; or a name is
            unknown, or one of `names` is one of the library's.

    >>> from_config({"chain": [{"clip_by_global_norm": {"max_norm": 0.5}}, {"adam": {"betas": [0.9, 0.95]}}, "monitor"]})
    chain(clip_by_global_norm(max_norm=0.5), adam(lr=0.001, betas=(0.9, 0.95), eps=1e-08), monitor())
    """
    made = Reader(names or {}).read(config, "", Transform)
    require_transform(made, "from_config")
    return made
