"""Real PKCS#11 modules, each on its own daemons: enrolled, endorsing, and what they cannot do."""

import pytest

from tests.modules.conftest import Examiner
from tests.modules.examination import SCHEMES, TRANSACTIONS
from tests.modules.matrix import EACH, KNOWN

pytestmark = [pytest.mark.modules, pytest.mark.timeout(240)]


@EACH
@pytest.mark.requirement("E-18")
def test_a_network_endorses_on_the_module(examined: Examiner, name: str) -> None:
    """Every transaction is endorsed by a key of every scheme that the module has, committed, and on the peer."""
    endorsed = examined(name).endorsed
    assert endorsed.committed == TRANSACTIONS
    assert endorsed.peer_height >= endorsed.height > 0


@EACH
@pytest.mark.requirement("E-18", "E-20")
def test_all_keys_are_generated_on_the_module(examined: Examiner, name: str) -> None:
    """Identity, center, CA and a node for each scheme: what differs is a URI and an environment."""
    found, known = examined(name), KNOWN[name]
    assert found.token.model == known.model
    assert found.generated == {
        "identity": known.schemes[0],
        "center/center-1": known.schemes[0],
        "ca/ca": known.schemes[0],
        **{f"node/{node}": scheme for scheme, node in found.nodes.items()},
    }
    assert tuple(found.nodes) == known.schemes


@EACH
def test_what_a_module_cannot_do_is_refused_with_the_reason(examined: Examiner, name: str) -> None:
    """A scheme that it lacks is refused as CKR_MECHANISM_INVALID; none is refused that it has."""
    refused = {scheme: why for scheme, why in examined(name).schemes.items() if why}
    assert set(refused) == set(SCHEMES) - set(KNOWN[name].schemes)
    assert all(why.startswith("MechanismInvalid") for why in refused.values()), refused


@EACH
@pytest.mark.requirement("K-1")
def test_keys_have_the_strictest_template_that_the_module_takes(examined: Examiner, name: str) -> None:
    """Exactly what it is known to refuse is left out, and never what keeps a key in custody."""
    assert examined(name).left_out == KNOWN[name].left_out


@EACH
def test_rsa_keys_have_the_size_of_the_settings(examined: Examiner, name: str) -> None:
    """3072 bits, and 2048 where the token's settings say so."""
    bits = KNOWN[name].rsa_bits
    assert examined(name).rsa_bits == ({bits} if bits else set())


@EACH
def test_the_signing_rate_of_every_scheme_is_measured(examined: Examiner, name: str) -> None:
    """More than one signature in a second, however busy the machine is: a block needs one for each node."""
    rates = examined(name).signatures_per_second
    assert set(rates) == set(KNOWN[name].schemes)
    assert min(rates.values()) > 1


@EACH
@pytest.mark.requirement("E-18")
def test_a_killed_worker_is_replaced(examined: Examiner, name: str) -> None:
    """Whatever the module kept in shared memory, files or daemons: one login later, the same identity signs."""
    assert 0 < examined(name).recovered_seconds < 30
