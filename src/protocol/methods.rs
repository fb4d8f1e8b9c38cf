//! Every method of AMQP 0-9-1 and of RabbitMQ's extensions, as one table.
//!
//! The order is that of the specification's XML, so that you can read the two side by side. A
//! row has this form:
//!
//! ```text
//! EnumVariant = Struct METHOD_ID "wire.name"
//!     new(arguments of the constructor)
//!     replies [OneOf | These] unless FLAG
//! { field: Type = default, ... }
//! ```
//!
//! Fields are in wire order. The documentation of a field is also that of its builder method.
//! Defaults are those of pika 0.9.6, except where today's RabbitMQ refuses them; the row says so.

use super::errors::{DecodeError, EncodeError};
pub use super::method_id::MethodId;
use super::wire::{Reader, Writer};

define_methods! {
    /// Methods that open, tune and close a connection. cony sends them itself.
    class connection 10 {
        /// Introduces the broker. It is the broker's first method.
        ConnectionStart = Start 10 "connection.start"
            replies [StartOk]
        {
            /// The major version of the protocol.
            version_major: u8 = 0,
            /// The minor version of the protocol.
            version_minor: u8 = 9,
            /// Product, version and capabilities of the broker.
            server_properties: FieldTable,
            /// The SASL mechanisms of the broker, separated by spaces.
            mechanisms: LongString = "PLAIN".into(),
            /// The locales for messages to people, separated by spaces.
            locales: LongString = "en_US".into(),
        }
        /// Introduces the client and begins the authentication.
        ConnectionStartOk = StartOk 11 "connection.start-ok" {
            /// Product, version and capabilities of the client.
            client_properties: FieldTable,
            /// The SASL mechanism that the client has chosen.
            mechanism: ShortString = "PLAIN".into(),
            /// The initial response of the mechanism.
            response: Secret,
            /// The locale that the client has chosen.
            locale: ShortString = "en_US".into(),
        }
        /// Demands a further step of the authentication.
        ConnectionSecure = Secure 20 "connection.secure"
            replies [SecureOk]
        {
            /// The challenge of the mechanism.
            challenge: LongString,
        }
        /// Responds to the challenge.
        ConnectionSecureOk = SecureOk 21 "connection.secure-ok" {
            /// The response of the mechanism.
            response: Secret,
        }
        /// Proposes limits to the client.
        ConnectionTune = Tune 30 "connection.tune"
            replies [TuneOk]
        {
            /// The highest channel number; 0 means no limit.
            channel_max: u16,
            /// The size of the largest frame in bytes, including the 8 bytes that enclose its
            /// payload; 0 means no limit.
            frame_max: u32,
            /// The heartbeat timeout in seconds; 0 means no heartbeats.
            heartbeat: u16,
        }
        /// Settles the limits of the connection.
        ConnectionTuneOk = TuneOk 31 "connection.tune-ok" {
            /// The highest channel number.
            channel_max: u16,
            /// The size of the largest frame in bytes.
            frame_max: u32,
            /// The heartbeat timeout in seconds.
            heartbeat: u16,
        }
        /// Opens a virtual host.
        ConnectionOpen = Open 40 "connection.open"
            new(virtual_host: ShortString)
            replies [OpenOk]
        {
            /// The name of the virtual host.
            virtual_host: ShortString = "/".into(),
            /// Reserved by the specification.
            capabilities: ShortString,
            /// Reserved by the specification.
            insist: bool = false,
        }
        /// Confirms that the connection is open.
        ConnectionOpenOk = OpenOk 41 "connection.open-ok" {
            /// Reserved by the specification.
            known_hosts: ShortString,
        }
        /// Closes the connection.
        ConnectionClose = Close 50 "connection.close"
            replies [CloseOk]
        {
            /// The reason as a number: see [`ReplyCode`](crate::ReplyCode).
            reply_code: u16,
            /// The reason in words.
            reply_text: ShortString,
            /// The class of the method that caused the close, or 0.
            class_id: u16,
            /// The number of the method that caused the close, or 0.
            method_id: u16,
        }
        /// Confirms the close of the connection.
        ConnectionCloseOk = CloseOk 51 "connection.close-ok" {}
        /// Announces that the broker lacks resources and reads no more publishes. (An extension
        /// of RabbitMQ.)
        ConnectionBlocked = Blocked 60 "connection.blocked" {
            /// The resource that is short, such as `low on memory`.
            reason: ShortString,
        }
        /// Announces that the broker reads publishes again. (An extension of RabbitMQ.)
        ConnectionUnblocked = Unblocked 61 "connection.unblocked" {}
        /// Replaces the secret of the connection, such as a token that is about to expire. (An
        /// extension of RabbitMQ.)
        ConnectionUpdateSecret = UpdateSecret 70 "connection.update-secret"
            replies [UpdateSecretOk]
        {
            /// The new secret.
            new_secret: Secret,
            /// The reason for the change, for the broker's log.
            reason: ShortString,
        }
        /// Confirms the new secret. (An extension of RabbitMQ.)
        ConnectionUpdateSecretOk = UpdateSecretOk 71 "connection.update-secret-ok" {}
    }

    /// Methods that open and close a channel, and control the flow of its messages.
    class channel 20 {
        /// Opens a channel.
        ChannelOpen = Open 10 "channel.open"
            replies [OpenOk]
        {
            /// Reserved by the specification.
            out_of_band: ShortString,
        }
        /// Confirms that the channel is open.
        ChannelOpenOk = OpenOk 11 "channel.open-ok" {
            /// Reserved by the specification.
            channel_id: LongString,
        }
        /// Stops or resumes the flow of messages. RabbitMQ refuses `active` = `false` from a
        /// client with 540 and closes the connection.
        ChannelFlow = Flow 20 "channel.flow"
            new(active: bool)
            replies [FlowOk]
        {
            /// Whether messages may flow.
            active: bool = true,
        }
        /// Confirms the state of the flow.
        ChannelFlowOk = FlowOk 21 "channel.flow-ok" {
            /// Whether messages flow.
            active: bool = true,
        }
        /// Closes a channel.
        ChannelClose = Close 40 "channel.close"
            replies [CloseOk]
        {
            /// The reason as a number: see [`ReplyCode`](crate::ReplyCode).
            reply_code: u16,
            /// The reason in words.
            reply_text: ShortString,
            /// The class of the method that caused the close, or 0.
            class_id: u16,
            /// The number of the method that caused the close, or 0.
            method_id: u16,
        }
        /// Confirms the close of a channel.
        ChannelCloseOk = CloseOk 41 "channel.close-ok" {}
    }

    /// Methods that request access tickets. RabbitMQ answers them and ignores the tickets.
    class access 30 {
        /// Requests an access ticket.
        AccessRequest = Request 10 "access.request"
            new(realm: ShortString)
            replies [RequestOk]
        {
            /// The name of the realm.
            realm: ShortString = "/data".into(),
            /// Requests exclusive access.
            exclusive: bool = false,
            /// Requests passive access.
            passive: bool = true,
            /// Requests active access.
            active: bool = true,
            /// Requests write access.
            write_access: bool = true,
            /// Requests read access.
            read_access: bool = true,
        }
        /// Grants an access ticket.
        AccessRequestOk = RequestOk 11 "access.request-ok" {
            /// The number of the ticket.
            ticket: u16 = 1,
        }
    }

    /// Methods for exchanges, to which messages are published.
    class exchange 40 with Type {
        /// Declares an exchange: creates it if it does not exist.
        ExchangeDeclare = Declare 10 "exchange.declare"
            new(exchange: ShortString)
            replies [DeclareOk] unless nowait
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the exchange.
            exchange: ShortString,
            /// The type of the exchange, as a [`Type`] or as its name.
            exchange_type: Type = Type::Direct,
            /// Whether to check only that the exchange exists. The broker then ignores every
            /// other field but the name, and refuses (404) if there is no such exchange.
            passive: bool = false,
            /// Whether the exchange survives a restart of the broker. (Queues are durable by
            /// default, exchanges are not.)
            durable: bool = false,
            /// Whether the broker deletes the exchange with its last binding.
            auto_delete: bool = false,
            /// Whether the exchange takes messages from other exchanges only.
            internal: bool = false,
            /// Whether the broker omits the reply.
            nowait: bool = false,
            /// Further arguments, such as `alternate-exchange`.
            arguments: FieldTable,
        }
        /// Confirms that the exchange exists.
        ExchangeDeclareOk = DeclareOk 11 "exchange.declare-ok" {}
        /// Deletes an exchange. For RabbitMQ it is no error if there is no such exchange.
        ExchangeDelete = Delete 20 "exchange.delete"
            new(exchange: ShortString)
            replies [DeleteOk] unless nowait
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the exchange.
            exchange: ShortString,
            /// Whether the broker refuses (406) while the exchange has bindings.
            if_unused: bool = false,
            /// Whether the broker omits the reply.
            nowait: bool = false,
        }
        /// Confirms that the exchange is deleted.
        ExchangeDeleteOk = DeleteOk 21 "exchange.delete-ok" {}
        /// Binds an exchange to another exchange, which routes messages to it. (An extension of
        /// RabbitMQ.)
        ///
        /// [`exchange_bind_with`](crate::BlockingChannel::exchange_bind_with) takes this struct.
        ExchangeBind = Bind 30 "exchange.bind"
            new(destination: ShortString, source: ShortString, routing_key: ShortString)
            replies [BindOk] unless nowait
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The exchange that receives the messages.
            destination: ShortString,
            /// The exchange that routes the messages.
            source: ShortString,
            /// The routing key of the binding. The type of the source decides which messages
            /// match.
            routing_key: ShortString,
            /// Whether the broker omits the reply.
            nowait: bool = false,
            /// The arguments of the binding, for `headers` exchanges and those of plugins.
            arguments: FieldTable,
        }
        /// Confirms that the binding exists.
        ExchangeBindOk = BindOk 31 "exchange.bind-ok" {}
        /// Removes the binding of two exchanges that has the same key and arguments. (An
        /// extension of RabbitMQ.)
        ///
        /// [`exchange_unbind_with`](crate::BlockingChannel::exchange_unbind_with) takes this
        /// struct.
        ExchangeUnbind = Unbind 40 "exchange.unbind"
            new(destination: ShortString, source: ShortString, routing_key: ShortString)
            replies [UnbindOk] unless nowait
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The exchange that receives the messages.
            destination: ShortString,
            /// The exchange that routes the messages.
            source: ShortString,
            /// The routing key of the binding.
            routing_key: ShortString,
            /// Whether the broker omits the reply.
            nowait: bool = false,
            /// The arguments of the binding.
            arguments: FieldTable,
        }
        /// Confirms that the binding is removed. (The number is 51 and not 41: RabbitMQ has
        /// chosen it.)
        ExchangeUnbindOk = UnbindOk 51 "exchange.unbind-ok" {}
    }

    /// Methods for queues, in which messages wait for consumers.
    class queue 50 with Type | Overflow {
        /// Declares a queue: creates it if it does not exist.
        ///
        /// `durable` is on by default, unlike in pika. Queues that are neither durable nor
        /// exclusive are deprecated: RabbitMQ 4.3 accepts them by default, but a setting refuses
        /// them and closes the connection (541).
        QueueDeclare = Declare 10 "queue.declare"
            new(queue: ShortString)
            replies [DeclareOk] unless nowait
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the queue. If it is empty, cony chooses one; the broker does if
            /// [recovery](crate::ConnectionParameters::recovery) is off or does not restore the
            /// topology.
            queue: ShortString,
            /// Whether to check only that the queue exists. The broker then ignores every other
            /// field but the name, and refuses (404) if there is no such queue.
            passive: bool = false,
            /// Whether the queue survives a restart of the broker.
            durable: bool = true,
            /// Whether only this connection may use the queue, which is deleted with it.
            exclusive: bool = false,
            /// Whether the broker deletes the queue with its last consumer.
            auto_delete: bool = false,
            /// Whether the broker omits the reply.
            nowait: bool = false,
            /// Further arguments, such as `x-queue-type` or `x-message-ttl`.
            arguments: FieldTable,
        }
        /// Confirms that the queue exists.
        QueueDeclareOk = DeclareOk 11 "queue.declare-ok" {
            /// The name of the queue: the one that the broker has chosen if it was empty.
            queue: ShortString,
            /// The number of messages that are ready in the queue.
            message_count: u32,
            /// The number of consumers of the queue.
            consumer_count: u32,
        }
        /// Binds a queue to an exchange, which routes messages to it.
        ///
        /// [`queue_bind_with`](crate::BlockingChannel::queue_bind_with) takes this struct.
        QueueBind = Bind 20 "queue.bind"
            new(queue: ShortString, exchange: ShortString, routing_key: ShortString)
            replies [BindOk] unless nowait
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the queue. If it is empty, the queue last declared on the channel.
            queue: ShortString,
            /// The name of the exchange.
            exchange: ShortString,
            /// The routing key of the binding. The type of the exchange decides which messages
            /// match.
            routing_key: ShortString,
            /// Whether the broker omits the reply.
            nowait: bool = false,
            /// The arguments of the binding, for `headers` exchanges and those of plugins.
            arguments: FieldTable,
        }
        /// Confirms that the binding exists.
        QueueBindOk = BindOk 21 "queue.bind-ok" {}
        /// Drops the messages that are ready in a queue.
        QueuePurge = Purge 30 "queue.purge"
            new(queue: ShortString)
            replies [PurgeOk] unless nowait
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the queue. If it is empty, the queue last declared on the channel.
            queue: ShortString,
            /// Whether the broker omits the reply.
            nowait: bool = false,
        }
        /// Confirms that the messages are dropped.
        QueuePurgeOk = PurgeOk 31 "queue.purge-ok" {
            /// The number of messages that were dropped.
            message_count: u32,
        }
        /// Deletes a queue. For RabbitMQ it is no error if there is no such queue.
        QueueDelete = Delete 40 "queue.delete"
            new(queue: ShortString)
            replies [DeleteOk] unless nowait
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the queue. If it is empty, the queue last declared on the channel.
            queue: ShortString,
            /// Whether the broker refuses (406) while the queue has consumers.
            if_unused: bool = false,
            /// Whether the broker refuses (406) while the queue has messages.
            if_empty: bool = false,
            /// Whether the broker omits the reply.
            nowait: bool = false,
        }
        /// Confirms that the queue is deleted.
        QueueDeleteOk = DeleteOk 41 "queue.delete-ok" {
            /// The number of messages that were deleted with the queue.
            message_count: u32,
        }
        /// Removes the binding of a queue that has the same key and arguments. (The protocol has
        /// no `nowait` for this method.)
        ///
        /// [`queue_unbind_with`](crate::BlockingChannel::queue_unbind_with) takes this struct.
        QueueUnbind = Unbind 50 "queue.unbind"
            new(queue: ShortString, exchange: ShortString, routing_key: ShortString)
            replies [UnbindOk]
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the queue. If it is empty, the queue last declared on the channel.
            queue: ShortString,
            /// The name of the exchange.
            exchange: ShortString,
            /// The routing key of the binding.
            routing_key: ShortString,
            /// The arguments of the binding.
            arguments: FieldTable,
        }
        /// Confirms that the binding is removed.
        QueueUnbindOk = UnbindOk 51 "queue.unbind-ok" {}
    }

    /// Methods that publish, get, consume and settle messages.
    class basic 60 {
        /// Limits the number of unsettled deliveries.
        BasicQos = Qos 10 "basic.qos"
            new(prefetch_count: u16)
            replies [QosOk]
        {
            /// The limit in bytes; 0 means no limit. RabbitMQ refuses any other value with 540
            /// and closes the connection.
            prefetch_size: u32 = 0,
            /// The number of unsettled deliveries; 0 means no limit.
            prefetch_count: u16 = 0,
            /// Whether the limit is for all consumers of the channel together. Otherwise it is
            /// for each consumer that starts later. RabbitMQ 4.3 with its default settings ignores
            /// this field, and always limits each consumer.
            global: bool = false,
        }
        /// Confirms the limit.
        BasicQosOk = QosOk 11 "basic.qos-ok" {}
        /// Starts a consumer.
        BasicConsume = Consume 20 "basic.consume"
            new(queue: ShortString)
            replies [ConsumeOk] unless nowait
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the queue. If it is empty, the queue last declared on the channel.
            queue: ShortString,
            /// The consumer tag. If it is empty, cony chooses one.
            consumer_tag: ShortString,
            /// Whether the consumer gets no messages that this connection has published.
            /// RabbitMQ ignores it.
            no_local: bool = false,
            /// Whether the broker regards each message as acknowledged when it has sent it.
            no_ack: bool = false,
            /// Whether the queue may have no other consumer.
            exclusive: bool = false,
            /// Whether the broker omits the reply.
            nowait: bool = false,
            /// Further arguments, such as `x-priority` or `x-stream-offset`.
            arguments: FieldTable,
        }
        /// Confirms that the consumer has started.
        BasicConsumeOk = ConsumeOk 21 "basic.consume-ok" {
            /// The consumer tag.
            consumer_tag: ShortString,
        }
        /// Cancels a consumer.
        BasicCancel = Cancel 30 "basic.cancel"
            new(consumer_tag: ShortString)
            replies [CancelOk] unless nowait
        {
            /// The consumer tag.
            consumer_tag: ShortString,
            /// Whether the broker omits the reply.
            nowait: bool = false,
        }
        /// Confirms that the consumer is cancelled.
        BasicCancelOk = CancelOk 31 "basic.cancel-ok" {
            /// The consumer tag.
            consumer_tag: ShortString,
        }
        /// Publishes a message. A content header and the body follow.
        BasicPublish = Publish 40 "basic.publish" {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the exchange. An empty name is the default exchange, whose routing
            /// keys are the names of queues.
            exchange: ShortString,
            /// The routing key. The type of the exchange decides which queues match.
            routing_key: ShortString,
            /// Whether the broker returns the message if no queue matches.
            mandatory: bool = false,
            /// Whether the broker returns the message if no consumer can take it at once.
            /// RabbitMQ refuses this with 540 and closes the connection.
            immediate: bool = false,
        }
        /// Returns a mandatory message that no queue matches. Content header and body follow.
        BasicReturn = Return 50 "basic.return" {
            /// The reason as a number: see [`ReplyCode`](crate::ReplyCode).
            reply_code: u16,
            /// The reason in words.
            reply_text: ShortString,
            /// The exchange of the publish.
            exchange: ShortString,
            /// The routing key of the publish.
            routing_key: ShortString,
        }
        /// Delivers a message to a consumer. Content header and body follow.
        BasicDeliver = Deliver 60 "basic.deliver" {
            /// The consumer tag.
            consumer_tag: ShortString,
            /// The number of the delivery on its channel.
            delivery_tag: u64,
            /// Whether the message may have been delivered before.
            redelivered: bool = false,
            /// The exchange of the publish.
            exchange: ShortString,
            /// The routing key of the publish.
            routing_key: ShortString,
        }
        /// Gets one message.
        BasicGet = Get 70 "basic.get"
            new(queue: ShortString)
            replies [GetOk | GetEmpty]
        {
            /// Reserved by the specification; RabbitMQ ignores it.
            ticket: u16,
            /// The name of the queue. If it is empty, the queue last declared on the channel.
            queue: ShortString,
            /// Whether the broker regards the message as acknowledged when it has sent it.
            no_ack: bool = false,
        }
        /// Delivers the message of a get. Content header and body follow.
        BasicGetOk = GetOk 71 "basic.get-ok" {
            /// The number of the delivery on its channel.
            delivery_tag: u64,
            /// Whether the message may have been delivered before.
            redelivered: bool = false,
            /// The exchange of the publish.
            exchange: ShortString,
            /// The routing key of the publish.
            routing_key: ShortString,
            /// The number of further messages that are ready in the queue.
            message_count: u32,
        }
        /// Answers a get of a queue that has no message ready.
        BasicGetEmpty = GetEmpty 72 "basic.get-empty" {
            /// Reserved by the specification.
            cluster_id: ShortString,
        }
        /// Acknowledges a delivery, or confirms a publish.
        BasicAck = Ack 80 "basic.ack"
            new(delivery_tag: u64)
        {
            /// The delivery tag or sequence number; with `multiple`, 0 means all so far.
            delivery_tag: u64 = 0,
            /// Whether all earlier unsettled deliveries (unconfirmed publishes) of the channel
            /// are included.
            multiple: bool = false,
        }
        /// Rejects a delivery.
        BasicReject = Reject 90 "basic.reject"
            new(delivery_tag: u64)
        {
            /// The delivery tag.
            delivery_tag: u64,
            /// Whether the message returns to its queue. Otherwise the queue dead-letters or
            /// drops it.
            requeue: bool = true,
        }
        /// Redelivers the unsettled deliveries of the channel. It has no reply.
        ///
        /// `requeue` is on by default, unlike in pika: RabbitMQ refuses `false` with 540.
        BasicRecoverAsync = RecoverAsync 100 "basic.recover-async"
            new(requeue: bool)
        {
            /// Whether the messages return to their queues. Otherwise the same consumers get
            /// them again.
            requeue: bool = true,
        }
        /// Redelivers the unsettled deliveries of the channel.
        ///
        /// `requeue` is on by default, unlike in pika: RabbitMQ refuses `false` with 540.
        BasicRecover = Recover 110 "basic.recover"
            new(requeue: bool)
            replies [RecoverOk]
        {
            /// Whether the messages return to their queues. Otherwise the same consumers get
            /// them again.
            requeue: bool = true,
        }
        /// Confirms that the broker redelivers the unsettled deliveries.
        BasicRecoverOk = RecoverOk 111 "basic.recover-ok" {}
        /// Rejects one or several deliveries, or reports that a publish has failed. (An extension
        /// of RabbitMQ.)
        BasicNack = Nack 120 "basic.nack"
            new(delivery_tag: u64)
        {
            /// The delivery tag or sequence number; with `multiple`, 0 means all so far.
            delivery_tag: u64 = 0,
            /// Whether all earlier unsettled deliveries (unconfirmed publishes) of the channel
            /// are included.
            multiple: bool = false,
            /// Whether the messages return to their queues. Otherwise the queues dead-letter or
            /// drop them.
            requeue: bool = true,
        }
    }

    /// Methods for publisher confirms. (An extension of RabbitMQ.)
    class confirm 85 {
        /// Begins confirm mode: the broker confirms each later publish.
        ConfirmSelect = Select 10 "confirm.select"
            replies [SelectOk] unless nowait
        {
            /// Whether the broker omits the reply.
            nowait: bool = false,
        }
        /// Confirms that the channel is in confirm mode.
        ConfirmSelectOk = SelectOk 11 "confirm.select-ok" {}
    }

    /// Methods for transactions: publishes and settlements that take effect together.
    class tx 90 {
        /// Makes the channel transactional.
        TxSelect = Select 10 "tx.select"
            replies [SelectOk]
        {}
        /// Confirms that the channel is transactional.
        TxSelectOk = SelectOk 11 "tx.select-ok" {}
        /// Commits the publishes and settlements since the last commit or rollback.
        TxCommit = Commit 20 "tx.commit"
            replies [CommitOk]
        {}
        /// Confirms the commit.
        TxCommitOk = CommitOk 21 "tx.commit-ok" {}
        /// Discards the publishes and settlements since the last commit or rollback.
        TxRollback = Rollback 30 "tx.rollback"
            replies [RollbackOk]
        {}
        /// Confirms the rollback.
        TxRollbackOk = RollbackOk 31 "tx.rollback-ok" {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::errors::Flaw;
    use super::super::wire::{Reader, ShortString, Writer};
    use super::*;

    fn arguments(method: &Method) -> Vec<u8> {
        let mut out = Vec::new();
        method.write(&mut Writer::new(&mut out)).unwrap();
        out
    }

    #[test]
    fn every_method_decodes_to_itself() {
        let methods = every_method();
        assert_eq!(methods.len(), 66);
        for method in methods {
            let bytes = arguments(&method);
            let read = Method::read(method.id(), &mut Reader::new(&bytes));
            assert_eq!(read, Some(Ok(method)));
        }
    }

    #[test]
    fn every_proper_prefix_of_every_method_is_an_error() {
        for method in every_method() {
            let bytes = arguments(&method);
            for length in 0..bytes.len() {
                let read = Method::read(method.id(), &mut Reader::new(&bytes[..length]));
                assert!(matches!(read, Some(Err(_))), "{method:?} cut at {length}");
            }
        }
    }

    #[test]
    fn golden_bytes_of_consume() {
        let consume = basic::Consume::new("q")
            .consumer_tag("t")
            .no_ack(true)
            .nowait(true);
        assert_eq!(arguments(&consume.into()), b"\0\0\x01q\x01t\x0a\0\0\0\0");
    }

    #[test]
    fn golden_bytes_of_declare_with_arguments() {
        let declare = queue::Declare::new("tasks").arguments([("x-queue-type", "quorum")]);
        assert_eq!(
            arguments(&declare.into()),
            b"\0\0\x05tasks\x02\0\0\0\x18\x0cx-queue-typeS\0\0\0\x06quorum"
        );
    }

    #[test]
    fn ids_names_and_replies_are_those_of_the_specification() {
        assert_eq!(exchange::UnbindOk::ID, MethodId::new(40, 51));
        assert_eq!(basic::GetEmpty::ID.to_string(), "basic.get-empty");
        assert_eq!(MethodId::new(60, 99).to_string(), "60.99");
        let get = Method::from(basic::Get::new("q"));
        assert_eq!(get.replies(), [basic::GetOk::ID, basic::GetEmpty::ID]);
        let nowait = Method::from(queue::Declare::new("q").nowait(true));
        assert!(nowait.replies().is_empty());
        assert!(Method::from(basic::Ack::default()).replies().is_empty());
    }

    #[test]
    fn a_name_of_256_bytes_names_its_field() {
        let error = Method::from(queue::Declare::new("q".repeat(256)))
            .write(&mut Writer::new(&mut Vec::new()))
            .unwrap_err();
        assert_eq!(error.what, "queue.declare queue (short string)");
        let (size, limit) = (256, 255);
        assert_eq!(error.flaw, Flaw::TooLong { size, limit });
    }

    #[test]
    fn an_unknown_method_is_not_a_malformed_one() {
        assert_eq!(
            Method::read(MethodId::new(60, 99), &mut Reader::new(&[])),
            None
        );
    }

    #[test]
    fn three_names_are_a_binding() {
        let expected = queue::Bind::new("q", "x", "k");
        assert_eq!(queue::Bind::from(("q", "x", "k")), expected);
        let owned = ("q".to_owned(), ShortString::from("x"), 'k');
        assert_eq!(queue::Bind::from(owned), expected);
        let unbind = queue::Unbind::from(("q", "x", "k"));
        assert_eq!(unbind, queue::Unbind::new("q", "x", "k"));
        let bind = exchange::Bind::from(("to", "from", "k"));
        assert_eq!((&*bind.destination, &*bind.source), ("to", "from"));
        let unbind = exchange::Unbind::from(("to", "from", "k"));
        assert_eq!(unbind, exchange::Unbind::new("to", "from", "k"));
    }

    #[test]
    fn one_argument_is_enough_where_the_method_needs_one() {
        assert_eq!(basic::Recover::from(true), basic::Recover::default());
        assert_eq!(
            basic::RecoverAsync::from(true),
            basic::RecoverAsync::default()
        );
        assert!(!basic::Recover::from(false).requeue);
        assert_eq!(basic::Qos::from(7).prefetch_count, 7);
        assert_eq!(access::Request::from("/data"), access::Request::default());
        assert_eq!(queue::Delete::from(&"q".to_owned()).queue, "q");
    }

    #[test]
    fn the_exchange_type_goes_over_the_wire_by_its_name() {
        let declare = exchange::Declare::new_topic("x");
        let bytes = arguments(&declare.clone().into());
        assert_eq!(bytes, b"\0\0\x01x\x05topic\0\0\0\0\0");
        let read = exchange::Declare::read(&mut Reader::new(&bytes)).unwrap();
        assert!(matches!(read.exchange_type, exchange::Type::Topic));
        let too_long = exchange::Declare::new("x").exchange_type("t".repeat(256));
        let error = Method::from(too_long)
            .write(&mut Writer::new(&mut Vec::new()))
            .unwrap_err();
        assert_eq!(error.what, "exchange.declare exchange_type (short string)");
    }
}
