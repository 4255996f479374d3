"""The runtime type checker of the test run: annotations of the whole package, shapes included, on every call.

Installed by pytest's option `--jaxtyping-packages` as an import hook; outside the tests nothing is checked.
"""

from beartype import BeartypeConf, beartype

# An int is accepted where a float is asked for, as in PEP 484 and mypy.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
