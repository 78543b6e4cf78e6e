"""What goes wrong, acted out on whoever is there.

`plan.py` decides what and when. Each fault is over after its time, and all are when the load is.
"""

from __future__ import annotations

import contextlib

import numpy as np

from tensoryard.errors import PoolExhausted

from .processes import Process


def is_named(name, envelope):
    """Whether an envelope is a message of that name."""
    return envelope[1 : 2 + len(name)] == bytes([0xA0 | len(name)]) + name.encode()


class Tripwires:
    """Faults that wait for a message of a name to be read, before or after that."""

    def __init__(self):
        #: [name, messages still to come, moment, act]
        self._wires = []

    def set(self, name, nth, moment, act):
        """Call `act(reader, identity)` at the nth message; `identity` is its sender's, at the coordinator."""
        self._wires.append([name, nth, moment, act])

    def touch(self, envelope, reader, moment, identity=None):
        """A message is about to be read, or was."""
        for wire in self._wires:
            if wire[2] == moment and is_named(wire[0], envelope):
                wire[1] -= 1
                if wire[1] == 0:
                    wire[3](reader, identity)

    def clear(self):
        """Nothing more goes wrong."""
        self._wires.clear()


class Faults:
    """Sets the faults of a plan, and undoes what they did."""

    def __init__(self, site):
        self._site = site
        self._world = site.world
        self._at_event = {}
        #: How often each struck somebody.
        self.struck = {}
        #: What is to be undone, by number.
        self._to_undo = {}
        self._number = 0

    def set(self, faults):
        """See that each happens when it is due."""
        for fault in faults:
            if fault.at_message is not None:
                self._site.tripwires.set(*fault.at_message, self._at_message(fault))
            elif fault.at_event is not None:
                self._at_event.setdefault(fault.at_event, []).append(fault)
            else:
                self._world.later(fault.at, self._strike, fault)

    def after_event(self, number):
        """An event has happened."""
        for fault in self._at_event.pop(number, ()):
            self._strike(fault)

    def end(self):
        """All is well from now on."""
        self._at_event.clear()
        self._site.tripwires.clear()
        for number in list(self._to_undo):
            self._undo(number)

    @property
    def calm(self):
        """No fault lasts."""
        return not self._to_undo

    # -- striking -----------------------------------------------------------------------------------------------------

    def _strike(self, fault):
        verb, _, noun = fault.what.partition(" ")
        act = getattr(self, f"_{fault.what.replace(' ', '_')}", None) or getattr(self, f"_{verb}")
        victims = self._candidates(noun)
        if act in (
            self._kill,
            self._freeze,
            self._slow_reader,
            self._fill_pool,
            self._drain_worker,
            self._close_client,
        ):
            if not victims:
                return
            self._done(fault, act, victims[int(fault.pick * len(victims))])
        else:
            self._done(fault, act, fault.pick)

    def _done(self, fault, act, victim):
        self.struck[fault.what] = self.struck.get(fault.what, 0) + 1
        self._world.note("fault", fault.what, getattr(victim, "name", ""), fault.for_s)
        if isinstance(victim, Process):
            victim.struck = True
        act(victim, fault.for_s)

    def _candidates(self, noun):
        site = self._site
        found = {
            "worker": site.workers,
            "client": site.clients,
            "coordinator": [site.network.hub] if site.network.hub else [],
            "fleet": [site.fleet] if site.fleet else [],
            "reader": [*site.clients, *site.workers],
            "pool": [*site.clients, *site.workers],
        }
        return [process for process in found.get(noun, ()) if process.alive]

    def _at_message(self, fault):
        verb, _, whom = fault.what.partition(" ")

        def strike(reader, identity):
            connection = self._site.network.connections.get(identity)
            sender = connection.peer if connection is not None else self._site.network.hub
            victim = reader if whom == "reader" else sender
            if victim is None or not victim.alive:
                return
            if verb == "reset":
                victim = victim if hasattr(victim, "connection") else reader
                self._done(fault, lambda peer, _: peer.connection.disturb(), victim)
            else:
                self._done(fault, self._kill if verb == "kill" else self._freeze, victim)

        return strike

    def _later(self, for_s, undo):
        self._number += 1
        self._to_undo[self._number] = undo
        self._world.later(for_s, self._undo, self._number)

    def _undo(self, number):
        undo = self._to_undo.pop(number, None)
        if undo is not None:
            undo()

    # -- the faults ---------------------------------------------------------------------------------------------------

    def _kill(self, process, for_s):
        process.kill()
        again = self._site.restart_of(process)
        if again is not None:
            self._later(for_s, again)

    def _freeze(self, process, for_s):
        process.freeze()
        self._later(for_s, process.thaw)

    def _pause_host(self, _pick, for_s):
        """All processes stop at once, as when a virtual machine is moved."""
        for process in self._site.processes():
            process.struck = True
            self._freeze(process, for_s)

    def _partition(self, pick, for_s):
        """Some peers do not reach the coordinator."""
        connections = [peer.connection for peer in self._site.peers() if peer.connection is not None]
        cut = [connection for number, connection in enumerate(connections) if (number * 0.618 + pick) % 1 < 0.4]
        for connection in cut or connections[:1]:
            if connection.hold():
                self._later(for_s, connection.release)

    def _lose_host(self, pick, for_s):
        """The same for all peers of a host; when it is back, what keeps its workers ends them, and others start."""
        peers = [peer for peer in self._site.peers() if peer.connection is not None]
        there = [peer for number, peer in enumerate(peers) if (number * 0.618 + pick) % 1 < 0.5]
        cut = [peer for peer in there if peer.connection.hold()]

        def come_back():
            for peer in cut:
                peer.connection.release()
                if peer.role == "worker" and peer.alive:
                    peer.kill()

        self._later(for_s, come_back)

    def _reset(self, pick, _for_s):
        connections = [peer.connection for peer in self._site.peers() if peer.connection is not None]
        if connections:
            connections[int(pick * len(connections))].disturb()

    def _redeploy(self, pick, _for_s):
        """Somebody wants more workers, or fewer, or others."""
        if self._site.fleet is not None and self._site.fleet.alive:
            self._site.fleet.redeploy(pick)

    def _slow_reader(self, peer, for_s):
        peer.reads_in_s = 0.3

        def read_fast():
            peer.reads_in_s = 0.0

        self._later(for_s, read_fast)

    def _drain_worker(self, worker, _for_s):
        worker.drain_soon()

    def _close_client(self, client, for_s):
        if client.connection is not None:
            client.close()
            self._later(for_s, self._site.restart_of(client))

    def _leap(self, pick, for_s):
        """A process's clock leaps, and nothing else happens in the meantime."""
        processes = self._site.processes()
        process = processes[int(pick * len(processes))]
        process.offset_s += for_s
        self._site.leapt_s += for_s
        self._world.note("leap", process.name, for_s)

    def _fill_pool(self, process, for_s):
        """Somebody takes all the memory of a process."""
        taken = []
        with contextlib.suppress(PoolExhausted):
            while True:
                taken.append(process.pool.empty(700, np.uint8))
        self._later(for_s, taken.clear)
