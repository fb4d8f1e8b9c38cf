//! Sending methods as values with `BlockingConnection::send_method`.

use cony::{Error, Message, queue};

use crate::support::{connect, expect_error, get, unique};

#[test]
fn methods_can_be_sent_and_returned_as_values() {
    use cony::{Method, basic, exchange};

    let connection = connect();
    let channel = connection.channel().unwrap();
    let number = channel.number();
    let declare = queue::Declare::new_exclusive();
    let Some(Method::QueueDeclareOk(declared)) =
        connection.send_method(number, declare, None).unwrap()
    else {
        panic!("expected Method::QueueDeclareOk");
    };
    let publish = basic::Publish::default().routing_key(&declared.queue);
    connection
        .send_method(number, publish, Some(Message::new("raw")))
        .unwrap();
    let message = get(&channel, &declared.queue);
    assert_eq!(message.body, "raw");
    let unroutable = basic::Publish::default().routing_key(unique("nothing"));
    for (publish, mandatory) in [
        (unroutable.clone().mandatory(true), false),
        (unroutable, true),
    ] {
        let message = Message::new("back").mandatory(mandatory);
        connection
            .send_method(number, publish, Some(message))
            .unwrap();
        channel.basic_qos(1).unwrap();
        assert_eq!(channel.try_next_return().unwrap().body(), "back");
    }
    let nowait = exchange::Declare::new(unique("exchange"))
        .auto_delete(true)
        .nowait(true);
    assert_eq!(connection.send_method(number, nowait, None).unwrap(), None);
    for refused in [
        Method::from(basic::Get::new(&declared.queue)),
        basic::Consume::new(&declared.queue).into(),
        cony::methods::channel::Close::default().into(),
        cony::methods::connection::Close::default().into(),
        basic::Deliver::default().into(),
    ] {
        expect_error!(
            connection.send_method(number, refused, None),
            Error::MethodRefused { .. }
        );
    }
    let error = expect_error!(
        connection.send_method(number, queue::Purge::new("x"), Some("body".into())),
        Error::MethodRefused { .. }
    );
    assert!(error.to_string().contains("only basic.publish"), "{error}");
    expect_error!(
        connection.send_method(99, queue::Purge::new("x"), None),
        Error::InvalidChannelNumber { number: 99, .. }
    );
    assert!(channel.is_open());
}
