//! Who one is: every mechanism that the test broker has, and that no password stays.

use cony::{
    BlockingConnection, ConnectError, ConnectionParameters, Credentials, Error, Mechanism, Secret,
};

use crate::support::{connect, url};

fn open(credentials: Credentials) -> cony::Result<BlockingConnection> {
    let parameters: ConnectionParameters = url().parse().unwrap();
    BlockingConnection::open(parameters.credentials(credentials))
}

/// RabbitMQ's demonstration of a mechanism that asks back.
struct Demo {
    password: &'static str,
}

impl Mechanism for Demo {
    fn name(&self) -> &str {
        "RABBIT-CR-DEMO"
    }

    fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
        match challenge {
            None => Some("guest".into()),
            Some(b"Please tell me your password") => {
                Some(format!("My password is {}", self.password).into())
            }
            Some(_) => None,
        }
    }
}

#[test]
fn user_and_password_go_with_plain_and_with_amqplain() {
    open(Credentials::plain("guest", "guest")).unwrap();
    open(Credentials::amqplain("guest", "guest")).unwrap();
    for mechanism in ["plain", "amqplain", "amqplain&auth_mechanism=plain"] {
        let url = format!("{}?auth_mechanism={mechanism}", url());
        BlockingConnection::open(url).unwrap().close().unwrap();
    }
}

#[test]
fn a_wrong_password_is_told_with_its_mechanism() {
    for (credentials, used) in [
        (Credentials::plain("guest", "wrong"), "PLAIN"),
        (Credentials::amqplain("guest", "wrong"), "AMQPLAIN"),
        (
            Credentials::custom(|| Demo { password: "wrong" }),
            "RABBIT-CR-DEMO",
        ),
    ] {
        let error = open(credentials).unwrap_err();
        match &error {
            Error::AuthenticationFailed {
                mechanism,
                certain: true,
                ..
            } => assert_eq!(mechanism, used),
            _ => panic!("{error}"),
        }
    }
}

#[test]
fn a_mechanism_of_ones_own_answers_challenges() {
    open(Credentials::custom(|| Demo { password: "guest" })).unwrap();
}

#[test]
fn the_first_of_a_list_that_the_broker_has_is_used() {
    struct Unheard;

    impl Mechanism for Unheard {
        fn name(&self) -> &str {
            "UNHEARD-OF"
        }

        fn respond(&mut self, _: Option<&[u8]>) -> Option<Secret> {
            panic!("the broker does not have it")
        }
    }

    let list = Credentials::custom(|| Unheard).or(Credentials::external());
    // Without TLS there is no EXTERNAL either.
    let error = open(list.clone()).unwrap_err();
    let none = matches!(
        &error,
        Error::Connect {
            cause: ConnectError::NoMechanism { .. },
            ..
        }
    );
    assert!(none, "{error}");
    open(list.or(Credentials::default())).unwrap();
}

#[test]
fn erased_credentials_open_nothing_more() {
    let credentials = Credentials::plain("guest", "guest").erase_on_connect(true);
    let clone = credentials.clone();
    let connection = open(credentials).unwrap();
    let error = open(clone.clone()).unwrap_err();
    assert!(matches!(error, Error::CredentialsErased), "{error}");
    assert!(!error.is_connection_error());
    // The connection does not need them any more.
    connection.channel().unwrap();
    // A failed attempt erases nothing.
    let wrong = Credentials::plain("guest", "wrong").erase_on_connect(true);
    for _ in 0..2 {
        let error = open(wrong.clone()).unwrap_err();
        let refused = matches!(error, Error::AuthenticationFailed { .. });
        assert!(refused, "{error}");
    }
    // Nor do those that need no password care.
    open(clone.or(Credentials::custom(|| Demo { password: "guest" }))).unwrap();
}

#[test]
fn a_fresh_secret_is_taken() {
    let connection = connect();
    let other = connection.clone();
    let thread = std::thread::spawn(move || other.update_secret("one", "in a thread"));
    connection.update_secret("two", "just so").unwrap();
    connection
        .update_secret(vec![0xff; 1000], &"long ".repeat(100))
        .unwrap();
    thread.join().unwrap().unwrap();
    let error = connection.update_secret("x".repeat(200_000), "too long");
    let error = error.unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    // What goes on is not disturbed.
    connection.channel().unwrap();
    connection.close().unwrap();
    let error = connection.update_secret("three", "too late").unwrap_err();
    assert!(matches!(error, Error::ConnectionClosed(_)), "{error}");
}

/// Looks through all the memory of this process.
#[cfg(target_os = "linux")]
mod memory {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use parking_lot::Mutex;
    use zeroize::Zeroize;

    /// One search at a time: each has in its buffer what it has just read, which another
    /// would find.
    static SEARCH: Mutex<()> = Mutex::new(());

    /// The bytes of the canary are kept like this, so that looking for it does not find
    /// what it is looked for with.
    const MASK: u8 = 0x5a;

    pub(super) fn canary(hidden: &[u8]) -> super::Secret {
        let mut bytes = Vec::with_capacity(hidden.len());
        bytes.extend(hidden.iter().map(|byte| byte ^ MASK));
        bytes.into()
    }

    /// How many copies of the canary there are.
    pub(super) fn copies(hidden: &[u8]) -> usize {
        let _search = SEARCH.lock();
        let memory = fs::File::open("/proc/self/mem").unwrap();
        let mut found = 0;
        // Large, so that it has pages of its own, which are left out: reading them into
        // themselves would make copies.
        let mut buffer = vec![0; 1 << 20];
        let own = buffer.as_ptr().addr() as u64;
        let behind = own + buffer.len() as u64;
        for (start, end) in writable() {
            for (mut at, end) in [(start, end.min(own)), (start.max(behind), end)] {
                while at < end {
                    let wanted = buffer.len().min((end - at) as usize);
                    // A page may be gone by now.
                    let Ok(count @ 1..) = memory.read_at(&mut buffer[..wanted], at) else {
                        break;
                    };
                    found += count_in(&buffer[..count], hidden);
                    // One that lies across two reads is seen by the second.
                    at += match at + count as u64 == end {
                        true => count,
                        false => count.saturating_sub(hidden.len() - 1).max(1),
                    } as u64;
                }
            }
        }
        buffer.zeroize();
        found
    }

    /// The parts of the memory that something could have been written to.
    fn writable() -> Vec<(u64, u64)> {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let parse = |text: &str| u64::from_str_radix(text, 16).unwrap();
        maps.lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, rest)| rest.starts_with("rw"))
            .filter_map(|(range, _)| range.split_once('-'))
            .map(|(start, end)| (parse(start), parse(end)))
            .collect()
    }

    fn count_in(bytes: &[u8], hidden: &[u8]) -> usize {
        let is_it = |window: &&[u8]| {
            let pairs = window.iter().zip(hidden);
            pairs.clone().all(|(byte, hidden)| byte ^ MASK == *hidden)
        };
        bytes.windows(hidden.len()).filter(is_it).count()
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_copy_of_a_password_stays_in_memory() {
    // Not the password of anybody, so the broker refuses it.
    let hidden: Vec<u8> = (0..32u8)
        .map(|index| index.wrapping_mul(37) ^ 0x91)
        .collect();
    for make in [
        |user: &str, secret: Secret| Credentials::plain(user, secret),
        |user: &str, secret: Secret| Credentials::amqplain(user, secret),
    ] {
        let credentials = make("guest", memory::canary(&hidden));
        assert_ne!(memory::copies(&hidden), 0, "the search finds nothing");
        let error = open(credentials.clone()).unwrap_err();
        let refused = matches!(error, Error::AuthenticationFailed { .. });
        assert!(refused, "{error}");
        assert_eq!(memory::copies(&hidden), 1, "the credentials have it");
        credentials.erase();
        assert_eq!(memory::copies(&hidden), 0);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_copy_of_a_fresh_secret_stays_in_memory() {
    let hidden: Vec<u8> = (0..32u8)
        .map(|index| index.wrapping_mul(41) ^ 0x83)
        .collect();
    let connection = connect();
    let secret = memory::canary(&hidden);
    assert_ne!(memory::copies(&hidden), 0, "the search finds nothing");
    connection.update_secret(secret, "a canary").unwrap();
    assert_eq!(memory::copies(&hidden), 0);
    connection.close().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn no_copy_of_a_password_of_a_url_stays_in_memory() {
    let letters = |index: u8| (b'a' + index.wrapping_mul(7) % 26) ^ 0x5a;
    let hidden: Vec<u8> = (0..32).map(letters).collect();
    let canary = memory::canary(&hidden);
    let canary = std::str::from_utf8(canary.as_bytes()).unwrap();
    // The text is handed over, so it is wiped as well. It must not grow on its way.
    let mut url = String::with_capacity(200);
    for part in [
        "amqp://guest:",
        canary,
        "%20@localhost/?auth_mechanism=amqplain",
    ] {
        url.push_str(part);
    }
    let parameters = ConnectionParameters::try_from(url).unwrap();
    assert_eq!(memory::copies(&hidden), 2, "the test and the credentials");
    drop(parameters);
    assert_eq!(memory::copies(&hidden), 1);
}
