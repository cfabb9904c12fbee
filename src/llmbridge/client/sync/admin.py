"""Streams, groups and connections as a whole, for programs without an event loop: as in `llmbridge.client`."""

from llmbridge.client import admin, connection_admin, groups
from llmbridge.client.sync.face import Face, blocking, blocking_each


class StreamAdmin(Face[admin.StreamAdmin]):
    """What can be done with streams as a whole."""

    create = blocking(admin.StreamAdmin.create)
    get = blocking(admin.StreamAdmin.get)
    of_session = blocking_each(admin.StreamAdmin.of_session)
    open = blocking_each(admin.StreamAdmin.open)
    trim = blocking(admin.StreamAdmin.trim)
    delete = blocking(admin.StreamAdmin.delete)


class GroupAdmin(Face[groups.GroupAdmin]):
    """What can be done with groups besides being a member."""

    acknowledge = blocking(groups.GroupAdmin.acknowledge)
    extend = blocking(groups.GroupAdmin.extend)
    reject = blocking(groups.GroupAdmin.reject)
    get = blocking(groups.GroupAdmin.get)
    of_log = blocking(groups.GroupAdmin.of_log)
    consumers = blocking(groups.GroupAdmin.consumers)
    delete = blocking(groups.GroupAdmin.delete)
    dead_letters = blocking_each(groups.GroupAdmin.dead_letters)
    redrive = blocking(groups.GroupAdmin.redrive)
    delete_dead_letters = blocking(groups.GroupAdmin.delete_dead_letters)


class ConnectionAdmin(Face[connection_admin.ConnectionAdmin]):
    """The readers, members and watchers attached to the bridge that answers, at all its workers."""

    list = blocking_each(connection_admin.ConnectionAdmin.list)
    count = blocking(connection_admin.ConnectionAdmin.count)
    disconnect = blocking(connection_admin.ConnectionAdmin.disconnect)
