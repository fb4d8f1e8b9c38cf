//! Every method of AMQP 0-9-1 and of RabbitMQ's extensions, as one table.
//!
//! The order is that of the specification's XML, so the two can be read side by
//! side. A row reads
//!
//! ```text
//! EnumVariant = Struct METHOD_ID "wire.name"
//!     new(arguments of the constructor)
//!     replies [OneOf | These] unless FLAG
//! { field: Type = default, ... }
//! ```
//!
//! with the fields in wire order. Defaults are those of pika 0.9.6, except where
//! today's RabbitMQ refuses them; such a row says so.

use std::fmt;

use super::errors::{DecodeError, EncodeError};
use super::wire::{Reader, Writer};

/// Class and method number: what names a method on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MethodId {
    /// The class, such as 50 for `queue`.
    pub class: u16,
    /// The method in its class, such as 10 for `declare`.
    pub method: u16,
}

impl fmt::Display for MethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}.{}", self.class, self.method),
        }
    }
}

impl fmt::Debug for MethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

define_methods! {
    /// Opening, tuning and closing a connection. The library sends these itself.
    class connection 10 {
        /// The broker introduces itself.
        ConnectionStart = Start 10 "connection.start"
            replies [StartOk]
        {
            /// The protocol's major version.
            version_major: u8 = 0,
            /// The protocol's minor version.
            version_minor: u8 = 9,
            /// What the broker is and can do.
            server_properties: FieldTable,
            /// SASL mechanisms, separated by spaces.
            mechanisms: LongString = "PLAIN".into(),
            /// Message locales, separated by spaces.
            locales: LongString = "en_US".into(),
        }
        /// The client introduces itself and begins to authenticate.
        ConnectionStartOk = StartOk 11 "connection.start-ok" {
            /// What the client is and can do.
            client_properties: FieldTable,
            /// The chosen SASL mechanism.
            mechanism: ShortString = "PLAIN".into(),
            /// The mechanism's initial response.
            response: Secret,
            /// The chosen message locale.
            locale: ShortString = "en_US".into(),
        }
        /// The broker asks for more proof.
        ConnectionSecure = Secure 20 "connection.secure"
            replies [SecureOk]
        {
            /// The mechanism's challenge.
            challenge: LongString,
        }
        /// The answer to the challenge.
        ConnectionSecureOk = SecureOk 21 "connection.secure-ok" {
            /// The mechanism's response.
            response: Secret,
        }
        /// The broker proposes limits.
        ConnectionTune = Tune 30 "connection.tune"
            replies [TuneOk]
        {
            /// The highest channel number; 0 means no limit.
            channel_max: u16,
            /// The largest frame in bytes, all its 8 octets of envelope included; 0 means no limit.
            frame_max: u32,
            /// The heartbeat timeout in seconds; 0 means none.
            heartbeat: u16,
        }
        /// The client settles the limits.
        ConnectionTuneOk = TuneOk 31 "connection.tune-ok" {
            /// The highest channel number.
            channel_max: u16,
            /// The largest frame in bytes.
            frame_max: u32,
            /// The heartbeat timeout in seconds.
            heartbeat: u16,
        }
        /// Asks for a virtual host.
        ConnectionOpen = Open 40 "connection.open"
            new(virtual_host: ShortString)
            replies [OpenOk]
        {
            /// The virtual host.
            virtual_host: ShortString = "/".into(),
            /// Reserved.
            capabilities: ShortString,
            /// Reserved.
            insist: bool = false,
        }
        /// The connection is open.
        ConnectionOpenOk = OpenOk 41 "connection.open-ok" {
            /// Reserved.
            known_hosts: ShortString,
        }
        /// Ends the connection.
        ConnectionClose = Close 50 "connection.close"
            replies [CloseOk]
        {
            /// Why, as a number.
            reply_code: u16,
            /// Why, in words.
            reply_text: ShortString,
            /// The class of the method that provoked it, or 0.
            class_id: u16,
            /// The method that provoked it, or 0.
            method_id: u16,
        }
        /// The end is agreed.
        ConnectionCloseOk = CloseOk 51 "connection.close-ok" {}
        /// RabbitMQ: the broker lacks resources and takes no publishes for now.
        ConnectionBlocked = Blocked 60 "connection.blocked" {
            /// Which resource.
            reason: ShortString,
        }
        /// RabbitMQ: the broker takes publishes again.
        ConnectionUnblocked = Unblocked 61 "connection.unblocked" {}
        /// RabbitMQ: hands in a fresh secret, such as a new token.
        ConnectionUpdateSecret = UpdateSecret 70 "connection.update-secret"
            replies [UpdateSecretOk]
        {
            /// The new secret.
            new_secret: Secret,
            /// Why it changes, for the broker's log.
            reason: ShortString,
        }
        /// RabbitMQ: the fresh secret is taken.
        ConnectionUpdateSecretOk = UpdateSecretOk 71 "connection.update-secret-ok" {}
    }

    /// Opening and closing channels, and the flow of content on them.
    class channel 20 {
        /// Opens a channel.
        ChannelOpen = Open 10 "channel.open"
            replies [OpenOk]
        {
            /// Reserved.
            out_of_band: ShortString,
        }
        /// The channel is open.
        ChannelOpenOk = OpenOk 11 "channel.open-ok" {
            /// Reserved.
            channel_id: LongString,
        }
        /// Stops or resumes the flow of content. RabbitMQ refuses `active` = false
        /// from a client with 540 and closes the connection.
        ChannelFlow = Flow 20 "channel.flow"
            new(active: bool)
            replies [FlowOk]
        {
            /// Whether content may flow.
            active: bool = true,
        }
        /// The flow is as asked.
        ChannelFlowOk = FlowOk 21 "channel.flow-ok" {
            /// Whether content flows.
            active: bool = true,
        }
        /// Ends a channel.
        ChannelClose = Close 40 "channel.close"
            replies [CloseOk]
        {
            /// Why, as a number.
            reply_code: u16,
            /// Why, in words.
            reply_text: ShortString,
            /// The class of the method that provoked it, or 0.
            class_id: u16,
            /// The method that provoked it, or 0.
            method_id: u16,
        }
        /// The end is agreed.
        ChannelCloseOk = CloseOk 41 "channel.close-ok" {}
    }

    /// Access tickets, which RabbitMQ answers but does not use.
    class access 30 {
        /// Asks for a ticket.
        AccessRequest = Request 10 "access.request"
            replies [RequestOk]
        {
            /// The realm.
            realm: ShortString = "/data".into(),
            /// Exclusive access.
            exclusive: bool = false,
            /// Passive access.
            passive: bool = true,
            /// Active access.
            active: bool = true,
            /// Write access.
            write_access: bool = true,
            /// Read access.
            read_access: bool = true,
        }
        /// The ticket.
        AccessRequestOk = RequestOk 11 "access.request-ok" {
            /// The ticket.
            ticket: u16 = 1,
        }
    }

    /// Exchanges: where messages are published to.
    class exchange 40 {
        /// Makes sure that an exchange exists.
        ExchangeDeclare = Declare 10 "exchange.declare"
            new(exchange: ShortString)
            replies [DeclareOk] unless nowait
        {
            /// Reserved.
            ticket: u16,
            /// The name.
            exchange: ShortString,
            /// The type: `direct`, `fanout`, `topic`, `headers`, or a plugin's.
            exchange_type: ShortString = "direct".into(),
            /// Only check that it exists; the other fields are not looked at.
            passive: bool = false,
            /// Survives a restart of the broker; off by default, unlike for queues.
            durable: bool = false,
            /// Goes when its last binding goes.
            auto_delete: bool = false,
            /// Takes messages from other exchanges only.
            internal: bool = false,
            /// Ask for no reply.
            nowait: bool = false,
            /// Extras such as `alternate-exchange`.
            arguments: FieldTable,
        }
        /// The exchange exists.
        ExchangeDeclareOk = DeclareOk 11 "exchange.declare-ok" {}
        /// Deletes an exchange. One that does not exist is no error on RabbitMQ.
        ExchangeDelete = Delete 20 "exchange.delete"
            new(exchange: ShortString)
            replies [DeleteOk] unless nowait
        {
            /// Reserved.
            ticket: u16,
            /// The name.
            exchange: ShortString,
            /// Refuse (406) while something is bound to it.
            if_unused: bool = false,
            /// Ask for no reply.
            nowait: bool = false,
        }
        /// The exchange is gone.
        ExchangeDeleteOk = DeleteOk 21 "exchange.delete-ok" {}
        /// RabbitMQ: routes messages from one exchange to another.
        ExchangeBind = Bind 30 "exchange.bind"
            new(destination: ShortString, source: ShortString, routing_key: ShortString)
            replies [BindOk] unless nowait
        {
            /// Reserved.
            ticket: u16,
            /// The exchange that receives.
            destination: ShortString,
            /// The exchange that gives.
            source: ShortString,
            /// Which messages, in the terms of the source's type.
            routing_key: ShortString,
            /// Ask for no reply.
            nowait: bool = false,
            /// For exchange types that look at more than the key.
            arguments: FieldTable,
        }
        /// The binding exists.
        ExchangeBindOk = BindOk 31 "exchange.bind-ok" {}
        /// RabbitMQ: undoes a bind with the same arguments.
        ExchangeUnbind = Unbind 40 "exchange.unbind"
            new(destination: ShortString, source: ShortString, routing_key: ShortString)
            replies [UnbindOk] unless nowait
        {
            /// Reserved.
            ticket: u16,
            /// The exchange that receives.
            destination: ShortString,
            /// The exchange that gives.
            source: ShortString,
            /// The key of the binding.
            routing_key: ShortString,
            /// Ask for no reply.
            nowait: bool = false,
            /// The arguments of the binding.
            arguments: FieldTable,
        }
        /// The binding is gone. (51, not 41: the number is RabbitMQ's.)
        ExchangeUnbindOk = UnbindOk 51 "exchange.unbind-ok" {}
    }

    /// Queues: where messages wait.
    class queue 50 {
        /// Makes sure that a queue exists.
        ///
        /// `durable` is on by default, unlike in pika: RabbitMQ 4.3 and later refuse a
        /// queue that is neither durable nor exclusive, and close the connection (541).
        QueueDeclare = Declare 10 "queue.declare"
            new(queue: ShortString)
            replies [DeclareOk] unless nowait
        {
            /// Reserved.
            ticket: u16,
            /// The name; empty lets the broker choose one.
            queue: ShortString,
            /// Only check that it exists; the other fields are not looked at.
            passive: bool = false,
            /// Survives a restart of the broker.
            durable: bool = true,
            /// For this connection only, and gone with it.
            exclusive: bool = false,
            /// Goes when its last consumer goes.
            auto_delete: bool = false,
            /// Ask for no reply.
            nowait: bool = false,
            /// Extras such as `x-queue-type` or `x-message-ttl`.
            arguments: FieldTable,
        }
        /// The queue exists.
        QueueDeclareOk = DeclareOk 11 "queue.declare-ok" {
            /// Its name, as the broker knows it.
            queue: ShortString,
            /// How many messages are ready in it.
            message_count: u32,
            /// How many consumers it has.
            consumer_count: u32,
        }
        /// Routes messages from an exchange to a queue.
        QueueBind = Bind 20 "queue.bind"
            new(queue: ShortString, exchange: ShortString, routing_key: ShortString)
            replies [BindOk] unless nowait
        {
            /// Reserved.
            ticket: u16,
            /// The queue; empty means the last one declared on the channel.
            queue: ShortString,
            /// The exchange.
            exchange: ShortString,
            /// Which messages, in the terms of the exchange's type.
            routing_key: ShortString,
            /// Ask for no reply.
            nowait: bool = false,
            /// For exchange types that look at more than the key.
            arguments: FieldTable,
        }
        /// The binding exists.
        QueueBindOk = BindOk 21 "queue.bind-ok" {}
        /// Drops the messages that are ready in a queue.
        QueuePurge = Purge 30 "queue.purge"
            new(queue: ShortString)
            replies [PurgeOk] unless nowait
        {
            /// Reserved.
            ticket: u16,
            /// The queue; empty means the last one declared on the channel.
            queue: ShortString,
            /// Ask for no reply.
            nowait: bool = false,
        }
        /// The messages are dropped.
        QueuePurgeOk = PurgeOk 31 "queue.purge-ok" {
            /// How many there were.
            message_count: u32,
        }
        /// Deletes a queue. One that does not exist is no error on RabbitMQ.
        QueueDelete = Delete 40 "queue.delete"
            new(queue: ShortString)
            replies [DeleteOk] unless nowait
        {
            /// Reserved.
            ticket: u16,
            /// The queue; empty means the last one declared on the channel.
            queue: ShortString,
            /// Refuse (406) while it has consumers.
            if_unused: bool = false,
            /// Refuse (406) while it has messages.
            if_empty: bool = false,
            /// Ask for no reply.
            nowait: bool = false,
        }
        /// The queue is gone.
        QueueDeleteOk = DeleteOk 41 "queue.delete-ok" {
            /// How many messages went with it.
            message_count: u32,
        }
        /// Undoes a bind with the same arguments. Has no nowait on the wire.
        QueueUnbind = Unbind 50 "queue.unbind"
            new(queue: ShortString, exchange: ShortString, routing_key: ShortString)
            replies [UnbindOk]
        {
            /// Reserved.
            ticket: u16,
            /// The queue.
            queue: ShortString,
            /// The exchange.
            exchange: ShortString,
            /// The key of the binding.
            routing_key: ShortString,
            /// The arguments of the binding.
            arguments: FieldTable,
        }
        /// The binding is gone.
        QueueUnbindOk = UnbindOk 51 "queue.unbind-ok" {}
    }

    /// Messages: publishing, getting, consuming, settling.
    class basic 60 {
        /// Limits how much is delivered ahead of its acknowledgement.
        BasicQos = Qos 10 "basic.qos"
            new(prefetch_count: u16)
            replies [QosOk]
        {
            /// In bytes; RabbitMQ refuses anything but 0 with 540 and closes the connection.
            prefetch_size: u32 = 0,
            /// How many messages; 0 means no limit.
            prefetch_count: u16 = 0,
            /// On RabbitMQ: for all consumers of the channel together, instead of for
            /// each one that starts later. RabbitMQ 4.3 no longer does that.
            global: bool = false,
        }
        /// The limit is set.
        BasicQosOk = QosOk 11 "basic.qos-ok" {}
        /// Starts a consumer.
        BasicConsume = Consume 20 "basic.consume"
            new(queue: ShortString)
            replies [ConsumeOk] unless nowait
        {
            /// Reserved.
            ticket: u16,
            /// The queue; empty means the last one declared on the channel.
            queue: ShortString,
            /// The consumer's name; empty lets cony choose one.
            consumer_tag: ShortString,
            /// Not messages of this connection. RabbitMQ ignores it.
            no_local: bool = false,
            /// Messages count as settled when they leave the broker.
            no_ack: bool = false,
            /// Nobody else may consume from the queue.
            exclusive: bool = false,
            /// Ask for no reply.
            nowait: bool = false,
            /// Extras such as `x-priority` or `x-stream-offset`.
            arguments: FieldTable,
        }
        /// The consumer is there.
        BasicConsumeOk = ConsumeOk 21 "basic.consume-ok" {
            /// Its name.
            consumer_tag: ShortString,
        }
        /// Ends a consumer.
        BasicCancel = Cancel 30 "basic.cancel"
            new(consumer_tag: ShortString)
            replies [CancelOk] unless nowait
        {
            /// Its name.
            consumer_tag: ShortString,
            /// Ask for no reply.
            nowait: bool = false,
        }
        /// The consumer is gone.
        BasicCancelOk = CancelOk 31 "basic.cancel-ok" {
            /// Its name.
            consumer_tag: ShortString,
        }
        /// Publishes the message that follows.
        BasicPublish = Publish 40 "basic.publish" {
            /// Reserved.
            ticket: u16,
            /// The exchange; empty means the default one, which knows queues by name.
            exchange: ShortString,
            /// Where to, in the terms of the exchange's type.
            routing_key: ShortString,
            /// Give the message back if it reaches no queue.
            mandatory: bool = false,
            /// RabbitMQ refuses this with 540 and closes the connection.
            immediate: bool = false,
        }
        /// A mandatory message that reached no queue, given back.
        BasicReturn = Return 50 "basic.return" {
            /// Why, as a number.
            reply_code: u16,
            /// Why, in words.
            reply_text: ShortString,
            /// The exchange that it was published to.
            exchange: ShortString,
            /// The routing key that it was published with.
            routing_key: ShortString,
        }
        /// A message for a consumer.
        BasicDeliver = Deliver 60 "basic.deliver" {
            /// Whom it is for.
            consumer_tag: ShortString,
            /// Its number on this channel.
            delivery_tag: u64,
            /// Whether it may have been delivered before.
            redelivered: bool = false,
            /// The exchange that it was published to.
            exchange: ShortString,
            /// The routing key that it was published with.
            routing_key: ShortString,
        }
        /// Asks for one message.
        BasicGet = Get 70 "basic.get"
            new(queue: ShortString)
            replies [GetOk | GetEmpty]
        {
            /// Reserved.
            ticket: u16,
            /// The queue; empty means the last one declared on the channel.
            queue: ShortString,
            /// The message counts as settled when it leaves the broker.
            no_ack: bool = false,
        }
        /// One message.
        BasicGetOk = GetOk 71 "basic.get-ok" {
            /// Its number on this channel.
            delivery_tag: u64,
            /// Whether it may have been delivered before.
            redelivered: bool = false,
            /// The exchange that it was published to.
            exchange: ShortString,
            /// The routing key that it was published with.
            routing_key: ShortString,
            /// How many more are ready in the queue.
            message_count: u32,
        }
        /// The queue has no message ready.
        BasicGetEmpty = GetEmpty 72 "basic.get-empty" {
            /// Reserved.
            cluster_id: ShortString,
        }
        /// Settles a delivery, or confirms a publish.
        BasicAck = Ack 80 "basic.ack"
            new(delivery_tag: u64)
        {
            /// The message's number; with `multiple`, 0 means all so far.
            delivery_tag: u64 = 0,
            /// All up to this number.
            multiple: bool = false,
        }
        /// Refuses a delivery.
        BasicReject = Reject 90 "basic.reject"
            new(delivery_tag: u64)
        {
            /// The message's number.
            delivery_tag: u64,
            /// Back into the queue, instead of away (or to the dead letters).
            requeue: bool = true,
        }
        /// Redelivers what is unsettled, without a reply.
        ///
        /// `requeue` is on by default, unlike in pika: RabbitMQ refuses the other with 540.
        BasicRecoverAsync = RecoverAsync 100 "basic.recover-async" {
            /// Back into the queue, instead of to the same consumer.
            requeue: bool = true,
        }
        /// Redelivers what is unsettled.
        ///
        /// `requeue` is on by default, unlike in pika: RabbitMQ refuses the other with 540.
        BasicRecover = Recover 110 "basic.recover"
            replies [RecoverOk]
        {
            /// Back into the queue, instead of to the same consumer.
            requeue: bool = true,
        }
        /// What was unsettled is on its way again.
        BasicRecoverOk = RecoverOk 111 "basic.recover-ok" {}
        /// RabbitMQ: refuses one or several deliveries, or says that a publish was lost.
        BasicNack = Nack 120 "basic.nack"
            new(delivery_tag: u64)
        {
            /// The message's number; with `multiple`, 0 means all so far.
            delivery_tag: u64 = 0,
            /// All up to this number.
            multiple: bool = false,
            /// Back into the queue, instead of away (or to the dead letters).
            requeue: bool = true,
        }
    }

    /// RabbitMQ: publisher confirms.
    class confirm 85 {
        /// Asks for a confirm of each publish from now on.
        ConfirmSelect = Select 10 "confirm.select"
            replies [SelectOk] unless nowait
        {
            /// Ask for no reply.
            nowait: bool = false,
        }
        /// Publishes will be confirmed.
        ConfirmSelectOk = SelectOk 11 "confirm.select-ok" {}
    }

    /// Transactions: publishes and settlements that take effect together.
    class tx 90 {
        /// Begins to collect.
        TxSelect = Select 10 "tx.select"
            replies [SelectOk]
        {}
        /// The channel is transactional.
        TxSelectOk = SelectOk 11 "tx.select-ok" {}
        /// Makes all since the last commit or rollback take effect.
        TxCommit = Commit 20 "tx.commit"
            replies [CommitOk]
        {}
        /// It took effect.
        TxCommitOk = CommitOk 21 "tx.commit-ok" {}
        /// Forgets all since the last commit or rollback.
        TxRollback = Rollback 30 "tx.rollback"
            replies [RollbackOk]
        {}
        /// It is forgotten.
        TxRollbackOk = RollbackOk 31 "tx.rollback-ok" {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::errors::Flaw;
    use super::super::wire::{Reader, Writer};
    use super::*;

    fn arguments(method: &Method) -> Vec<u8> {
        let mut out = Vec::new();
        method.write(&mut Writer::new(&mut out)).unwrap();
        out
    }

    #[test]
    fn every_method_reads_back_what_it_wrote() {
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
        assert_eq!(
            exchange::UnbindOk::ID,
            MethodId {
                class: 40,
                method: 51
            }
        );
        assert_eq!(basic::GetEmpty::ID.to_string(), "basic.get-empty");
        assert_eq!(
            MethodId {
                class: 60,
                method: 99
            }
            .to_string(),
            "60.99"
        );
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
    fn an_unknown_method_is_told_from_a_malformed_one() {
        assert_eq!(
            Method::read(
                MethodId {
                    class: 60,
                    method: 99
                },
                &mut Reader::new(&[])
            ),
            None
        );
    }
}
