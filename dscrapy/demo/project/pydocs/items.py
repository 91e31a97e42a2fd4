"""What the spider gives."""

from dataclasses import dataclass


@dataclass
class ModulePage:
    """One page of documentation: a module of the standard library.

    ``classes`` and ``functions`` count what the module defines, ``links`` the
    links of its page to others of the site.
    """

    url: str
    module: str
    title: str
    synopsis: str
    classes: int
    functions: int
    links: int
