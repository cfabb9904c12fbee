"""A member of a group as a process of its own, to be killed for real: `python -m tests.support.member_process …`.

It settles the first so many entries that it gets, says so, then holds all further ones and says how many.
"""

import subprocess
import sys
from dataclasses import dataclass

import grpc

from llmbridge.v1.bridge_service_pb2 import ACKNOWLEDGEMENT_EXPLICIT, GroupMembership, SubscribeRequest
from llmbridge.v1.bridge_service_pb2_grpc import BridgeServiceStub
from llmbridge.v1.group_service_pb2 import AcknowledgeRequest, GroupRef
from llmbridge.v1.group_service_pb2_grpc import GroupServiceStub
from llmbridge.v1.stream_pb2 import StreamRef


@dataclass
class MemberProcess:
    """A running member."""

    address: str
    stream: StreamRef
    group: str
    settle: int
    hold: int

    def start(self) -> "MemberProcess":
        """Start it and wait until it has settled and holds what it should."""
        key = (self.stream.session_id, self.stream.model_id, self.stream.response_id)
        numbers = (str(self.settle), str(self.hold))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.member_process", self.address, self.group, *key, *numbers],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        assert line[:1] == ["holding"], f"the member failed: {line}, exit code {self.process.wait(10)}"
        self.settled = [int(sequence) for sequence in line[1].split(",") if sequence]
        self.held = [int(sequence) for sequence in line[2].split(",")]
        return self

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def main(address: str, group: str, session_id: str, model_id: str, response_id: str, settle: str, hold: str) -> None:
    """Be a member until killed. Entries must have one token each."""
    stream = StreamRef(session_id=session_id, model_id=model_id, response_id=response_id)
    membership = GroupMembership(
        name=group,
        acknowledgement=ACKNOWLEDGEMENT_EXPLICIT,
        max_outstanding_tokens=int(settle) + int(hold),
    )
    settled: list[int] = []
    held: list[int] = []
    with grpc.insecure_channel(address) as channel:
        call = BridgeServiceStub(channel).Subscribe(SubscribeRequest(stream=stream, group=membership))
        for message in call:
            for i, ack_id in enumerate(message.ack_ids):
                mine = settled if len(settled) < int(settle) else held
                mine.append(message.first_sequence + i)
                if mine is settled:
                    GroupServiceStub(channel).Acknowledge(
                        AcknowledgeRequest(group=GroupRef(stream=stream, name=group), ack_ids=[ack_id])
                    )
            if len(held) >= int(hold):
                print("holding", ",".join(map(str, settled)) or ",", ",".join(map(str, held)), flush=True)
    raise SystemExit("the call ended")


if __name__ == "__main__":
    main(*sys.argv[1:])
