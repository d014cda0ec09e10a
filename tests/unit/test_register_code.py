"""What the compiled kernels share."""

import hashlib
from pathlib import Path

from evalkit.kernels.cpu import register_code


def test_shared_code_that_changes_has_a_new_revision_so_that_kernels_are_compiled_anew():
    """A failure here needs a new REVISION, in the kernels too, if the generated code changed, and then a new pair."""
    digest = hashlib.blake2b(Path(register_code.__file__).read_bytes(), digest_size=8).hexdigest()
    assert (register_code.REVISION, digest) == (1, "6e2f9f114072d0d2")
