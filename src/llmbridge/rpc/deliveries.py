"""The encoding of SubscribeManyResponse: stored bytes are embedded unopened, so only what is around them is encoded."""

from collections.abc import Iterable

from llmbridge.rpc.protobuf import LENGTH, SHORT, VARINTS, encoded_varint, tag
from llmbridge.rpc.status import failure_of
from llmbridge.v1.bridge_service_pb2 import Delivery, Failure, SubscribeManyResponse, SubscriptionAttached

_DELIVERIES = tag(SubscribeManyResponse.DELIVERIES_FIELD_NUMBER, LENGTH)
_MESSAGE = tag(Delivery.MESSAGE_FIELD_NUMBER, LENGTH)


class ProtoDeliveries:
    """Implements subscribe.deliveries.Deliveries."""

    def recipients(self, numbers: Iterable[int]) -> bytes:
        """Encode whom a delivery is for."""
        return Delivery(subscriptions=numbers).SerializeToString()

    def head(self, recipients: bytes, size: int) -> bytes:
        """Encode what comes before a message of so many bytes."""
        message_size = VARINTS[size] if size < SHORT else encoded_varint(size)
        whole = len(recipients) + 1 + len(message_size) + size
        whole_size = VARINTS[whole] if whole < SHORT else encoded_varint(whole)
        return b"".join((_DELIVERIES, whole_size, recipients, _MESSAGE, message_size))

    def attached(self, recipients: bytes) -> bytes:
        """Encode that subscriptions are attached."""
        return _response(recipients, Delivery(attached=SubscriptionAttached()))

    def end(self, recipients: bytes, error: Exception | None) -> bytes:
        """Encode that subscriptions have ended."""
        return _response(recipients, Delivery(end=Failure() if error is None else failure_of(error)))


def _response(recipients: bytes, delivery: Delivery) -> bytes:
    delivery.MergeFromString(recipients)
    return SubscribeManyResponse(deliveries=[delivery]).SerializeToString()
