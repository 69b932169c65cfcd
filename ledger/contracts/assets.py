"""The contract `assets`: coins that are issued, transferred, and spent once (requirement M-7).

A coin is named by the transaction that made it and its place among the outputs: `<transaction>:<index>`. Each
client issues assets of its own, named `<client>:<symbol>`.
"""

from typing import Annotated, Final

import msgspec

from ledger.contracts.contract import Call, Contract, Operation, Reads, Writes
from ledger.errors import RejectedError
from protocol import canonical
from protocol.canonical import MAX_INTEGER, Name

NAME: Final = "assets"
PREFIX: Final = "assets/coin/"

CoinId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}:(0|[1-9][0-9]{0,2})\Z")]
Amount = Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]


class Output(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Who is to own how much, in the asset's smallest unit."""

    owner: Name
    amount: Amount


Outputs = Annotated[tuple[Output, ...], msgspec.Meta(min_length=1, max_length=256)]


class Issue(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Arguments of `issue`: new coins of the client's own asset."""

    symbol: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9]{1,16}\Z")]
    outputs: Outputs


class Transfer(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Arguments of `transfer`: coins of one asset, all owned by the client, and what becomes of their sum."""

    inputs: Annotated[tuple[CoinId, ...], msgspec.Meta(min_length=1, max_length=64)]
    outputs: Outputs


class Coin(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A coin; once it is spent, it says by which transaction."""

    asset: str
    owner: str
    amount: int
    spent_by: str | None = None


def coin_key(coin: str) -> str:
    """The state key of a coin."""
    return PREFIX + coin


def _issue(arguments: Issue, call: Call, _reads: Reads) -> Writes:
    _check_sum(arguments.outputs)
    return _new_coins(f"{call.client}:{arguments.symbol}", arguments.outputs, call)


def _transfer(arguments: Transfer, call: Call, reads: Reads) -> Writes:
    if len(set(arguments.inputs)) != len(arguments.inputs):
        raise RejectedError("duplicate-input", "a coin stands twice among the inputs")
    coins = [_spendable(coin, call, reads) for coin in arguments.inputs]
    asset = coins[0].asset
    if any(coin.asset != asset for coin in coins):
        raise RejectedError("mixed-assets", "the inputs are coins of different assets")
    inputs, outputs = sum(coin.amount for coin in coins), _check_sum(arguments.outputs)
    if inputs != outputs:
        raise RejectedError("unbalanced", f"the inputs are worth {inputs}, the outputs {outputs}")
    writes = dict(_new_coins(asset, arguments.outputs, call))
    for name, coin in zip(arguments.inputs, coins, strict=True):
        writes[coin_key(name)] = canonical.encode(Coin(coin.asset, coin.owner, coin.amount, call.transaction))
    return writes


def _spendable(name: str, call: Call, reads: Reads) -> Coin:
    data = reads[coin_key(name)]
    if data is None:
        raise RejectedError("unknown-coin", f"there is no coin {name}")
    coin = _coin_decoder.decode(data)
    if coin.spent_by is not None:
        raise RejectedError("already-spent", f"coin {name} was spent by transaction {coin.spent_by}")
    if coin.owner != call.client:
        raise RejectedError("not-owner", f"coin {name} belongs to {coin.owner}, not to {call.client}")
    return coin


def _new_coins(asset: str, outputs: tuple[Output, ...], call: Call) -> Writes:
    for output in outputs:
        if call.registry.client(output.owner) is None:
            raise RejectedError("unknown-owner", f"{output.owner} is no registered client")
    return {
        coin_key(f"{call.transaction}:{index}"): canonical.encode(Coin(asset, output.owner, output.amount))
        for index, output in enumerate(outputs)
    }


def _check_sum(outputs: tuple[Output, ...]) -> int:
    total = sum(output.amount for output in outputs)
    if total > MAX_INTEGER:
        raise RejectedError("too-much", f"the outputs sum up to {total}, more than {MAX_INTEGER}")
    return total


_coin_decoder = msgspec.json.Decoder(Coin)

CONTRACT: Final[Contract] = {
    "issue": Operation(Issue, lambda _arguments, _call: (), _issue),
    "transfer": Operation(Transfer, lambda arguments, _call: tuple(map(coin_key, arguments.inputs)), _transfer),
}
