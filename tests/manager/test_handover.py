"""From a prefill engine to a decode engine: both tables right, and no blocks lost when either side fails or dies."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import attrs
import pytest

from statecore import NotReceivable, PrefixCacheManager, Sending, TransferState
from tests.manager.given import Place, finish, must_be_sound, schedule, task, unchanged

PROMPT = [1, 2, 3, 4, 5]


@attrs.define
class Pair:
    """A prompt computed by `prefill`, and blocks that `decode` has reserved for it, one more than it fills."""

    place: Place
    prefill: PrefixCacheManager
    decode: PrefixCacheManager
    request: SimpleNamespace
    reserved: list[int]


@pytest.fixture
def pair(place: Place) -> Pair:
    prefill, decode = place.manager("prefill-0", "prefill"), place.manager("decode-0", "decode")
    request = task("handed", PROMPT)
    schedule(prefill, request)
    return Pair(place, prefill, decode, request, decode.allocate_gpu_blocks(4, "handed"))


def both_are_sound(pair: Pair) -> None:
    for manager in (pair.prefill, pair.decode):
        manager.index.refresh()
        must_be_sound(manager)
    assert pair.prefill.index.digest() == pair.decode.index.digest()


def test_a_request_is_handed_over(pair: Pair) -> None:
    """Otherwise the decode engine would decode from blocks nobody wrote.

    Given a computed prompt, when it is sent, then the receiver, who waited before it was, hears that its blocks are
    there; both tables are as before; the sender may release, what it computed stays cached, and the receiver decodes on.
    """
    heard: list[TransferState] = []
    waiter = threading.Thread(target=lambda: heard.append(pair.decode.wait_for_cache("handed", 20.0)))
    waiter.start()

    handover = pair.prefill.send_cache(pair.request, "decode-0", pair.reserved)
    with unchanged(pair.prefill), pytest.raises(Sending):
        pair.prefill.release_block_ids(pair.request)
    with pair.place.workers(pair.prefill):
        waiter.join(20.0)
        assert pair.prefill.index.wait(handover.transfer, 20.0).done

    assert [state.done for state in heard] == [True]
    finish(pair.prefill, pair.request)
    assert pair.prefill.would_match_blocks(task("next", PROMPT), 2) == 2
    pair.decode.index.refresh()
    pair.decode.recycle_gpu_blocks(pair.reserved, "handed")
    assert len(pair.decode.gpu_free_block_list) == 6
    both_are_sound(pair)


def test_the_first_output_token_does_not_hinder(pair: Pair) -> None:
    """Otherwise a prompt of whole blocks could not be handed over once its first token was sampled.

    Given a prompt that fills its blocks and one sampled token, when it is sent, then the blocks of the prompt are.
    """
    request = task("whole", [7, 8])
    schedule(pair.prefill, request)
    request.output_token_ids = [9]

    handover = pair.prefill.send_cache(request, "decode-0", pair.reserved[:1])

    sends = pair.prefill.index.inspect(lambda state: state.sends[handover.transfer].blocks)
    assert sends == 1
    pair.prefill.index.cancel(handover.transfer)


def test_nobody_has_sent_it(pair: Pair) -> None:
    """Otherwise a decode engine would hang. Given no send, when waited for a moment, then it says so."""
    state = pair.decode.wait_for_cache("handed", 0.05)

    assert state.under_way
    assert (state.transfer, state.reason) == ("", "no send of it is known here")


def test_the_workers_fail(pair: Pair) -> None:
    """Otherwise the decode engine would decode from half-written blocks.

    Given workers that fail, when sent, then both sides hear why, and both may release everything.
    """
    handover = pair.prefill.send_cache(pair.request, "decode-0", pair.reserved)
    with pair.place.workers(pair.prefill, fails="the link is down"):
        state = pair.decode.wait_for_cache("handed", 20.0)
        sent = pair.prefill.index.wait(handover.transfer, 20.0)

    assert (state.state, sent.state) == ("failed", "failed")
    assert "the link is down" in state.reason
    finish(pair.prefill, pair.request)
    pair.decode.recycle_gpu_blocks(pair.reserved)
    both_are_sound(pair)


def test_the_receiver_dies(pair: Pair) -> None:
    """Otherwise the sender would keep the request for ever. Given a send, when the receiver ends, then it is cancelled,
    and the blocks that a worker may still write are free only when it has reported.
    """
    handover = pair.prefill.send_cache(pair.request, "decode-0", pair.reserved)

    pair.decode.index.refresh()
    pair.decode.index.leave()

    state = pair.prefill.index.wait(handover.transfer, 20.0)
    assert state.state == "cancelled"
    finish(pair.prefill, pair.request)
    assert pair.prefill.index.inspect(lambda found: found.pools["gpu:decode-0"].free.total) == 3
    pair.place.report(pair.prefill, handover.transfer)
    pair.prefill.index.refresh()
    assert pair.prefill.index.inspect(lambda found: found.pools["gpu:decode-0"].free.total) == 6
    must_be_sound(pair.prefill)


def test_the_sender_dies(pair: Pair) -> None:
    """Otherwise the receiver would wait for ever. Given a send, when the sender ends, then the receiver hears it is
    cancelled.
    """
    pair.prefill.send_cache(pair.request, "decode-0", pair.reserved)
    pair.prefill.index.leave()

    state = pair.decode.wait_for_cache("handed", 20.0)

    assert state.state == "cancelled"
    pair.decode.recycle_gpu_blocks(pair.reserved)


def test_who_may_send(pair: Pair) -> None:
    """Otherwise blocks would be overwritten that nobody reserved.

    Given a decode engine, or a receiver that is not there, or the sender itself, when it is sent, then refused, nothing
    begun.
    """
    with unchanged(pair.decode), pytest.raises(ValueError, match="decode engine receives"):
        pair.decode.send_cache(pair.request, "prefill-0", pair.reserved)
    with unchanged(pair.prefill), pytest.raises(NotReceivable, match="not there"):
        pair.prefill.send_cache(pair.request, "decode-1", pair.reserved)
    with unchanged(pair.prefill), pytest.raises(NotReceivable, match="same pool"):
        pair.prefill.send_cache(pair.request, "prefill-0", pair.reserved)
