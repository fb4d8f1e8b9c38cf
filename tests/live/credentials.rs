//! Credentials: every mechanism of the test broker, and that no copy of a password stays in memory.

use cony::{
    BlockingConnection, ConnectError, ConnectionParameters, Credentials, Error, Mechanism,
    Recovery, Secret,
};

use crate::support::child::in_child_process;
use crate::support::{connect, expect_error, url};

fn open(credentials: Credentials) -> cony::Result<BlockingConnection> {
    let parameters: ConnectionParameters = url().parse().unwrap();
    BlockingConnection::open(parameters.credentials(credentials))
}

/// RabbitMQ's demonstration of a mechanism with a challenge.
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
fn user_and_password_are_accepted_by_plain_and_amqplain() {
    open(Credentials::plain("guest", "guest")).unwrap();
    open(Credentials::amqplain("guest", "guest")).unwrap();
    for mechanism in ["plain", "amqplain", "amqplain&auth_mechanism=plain"] {
        let url = format!("{}?auth_mechanism={mechanism}", url());
        BlockingConnection::open(url).unwrap().close().unwrap();
    }
}

#[test]
fn a_wrong_password_is_reported_with_its_mechanism() {
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
fn a_mechanism_of_the_program_responds_to_challenges() {
    open(Credentials::custom(|| Demo { password: "guest" })).unwrap();
}

#[test]
fn the_first_mechanism_that_the_broker_offers_is_used() {
    struct Unheard;

    impl Mechanism for Unheard {
        fn name(&self) -> &str {
            "UNHEARD-OF"
        }

        fn respond(&mut self, _: Option<&[u8]>) -> Option<Secret> {
            panic!("the broker does not offer this mechanism")
        }
    }

    let list = Credentials::custom(|| Unheard).or(Credentials::external());
    // The broker offers EXTERNAL only with TLS.
    expect_error!(
        open(list.clone()),
        Error::Connect {
            cause: ConnectError::NoMechanism { .. },
            ..
        }
    );
    open(list.or(Credentials::default())).unwrap();
}

#[test]
fn erased_credentials_open_no_further_connection() {
    let credentials = Credentials::plain("guest", "guest").erase_on_connect(true);
    let clone = credentials.clone();
    let connection = open(credentials).unwrap();
    let error = expect_error!(open(clone.clone()), Error::CredentialsErased);
    assert!(!error.is_connection_error());
    // An open connection does not need its credentials any more.
    connection.channel().unwrap();
    // A failed attempt erases nothing.
    let wrong = Credentials::plain("guest", "wrong").erase_on_connect(true);
    for _ in 0..2 {
        expect_error!(open(wrong.clone()), Error::AuthenticationFailed { .. });
    }
    // A mechanism without erased credentials can still be used.
    open(clone.or(Credentials::custom(|| Demo { password: "guest" }))).unwrap();
}

#[test]
fn update_secret_is_accepted_by_the_broker() {
    let connection = connect();
    let other = connection.clone();
    let thread = std::thread::spawn(move || other.update_secret("one", "in a thread"));
    connection.update_secret("two", "just so").unwrap();
    connection
        .update_secret(vec![0xff; 1000], &"long ".repeat(100))
        .unwrap();
    thread.join().unwrap().unwrap();
    expect_error!(
        connection.update_secret("x".repeat(200_000), "too long"),
        Error::TooLong { .. }
    );
    // The connection stays usable.
    connection.channel().unwrap();
    connection.close().unwrap();
    expect_error!(
        connection.update_secret("three", "too late"),
        Error::ConnectionClosed(_)
    );
}

/// Searches the memory of this process. A test that does so runs in a process of its own, which has
/// much less memory than that of all tests.
#[cfg(target_os = "linux")]
mod memory {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use zeroize::Zeroize;

    /// The search compares with the masked bytes of the canary, so that it does not find its own
    /// pattern.
    const MASK: u8 = 0x5a;

    pub(super) fn canary(hidden: &[u8]) -> super::Secret {
        let mut bytes = Vec::with_capacity(hidden.len());
        bytes.extend(hidden.iter().map(|byte| byte ^ MASK));
        bytes.into()
    }

    /// Counts the copies of the canary.
    pub(super) fn copies(hidden: &[u8]) -> usize {
        let memory = fs::File::open("/proc/self/mem").unwrap();
        let mut found = 0;
        // The buffer is so large that it has pages of its own. They are left out, because reading
        // them into the buffer would copy the canary.
        let mut buffer = vec![0; 1 << 20];
        let own = buffer.as_ptr().addr() as u64;
        let behind = own + buffer.len() as u64;
        for (start, end) in writable() {
            for (mut at, end) in [(start, end.min(own)), (start.max(behind), end)] {
                while at < end {
                    let wanted = buffer.len().min((end - at) as usize);
                    // The page may have been unmapped.
                    let Ok(count @ 1..) = memory.read_at(&mut buffer[..wanted], at) else {
                        break;
                    };
                    found += count_in(&buffer[..count], hidden);
                    // The second of two reads overlaps the first, for a canary across both.
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

    /// Returns the writable ranges of the memory.
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
            let mut pairs = window.iter().zip(hidden);
            pairs.all(|(byte, hidden)| byte ^ MASK == *hidden)
        };
        bytes.windows(hidden.len()).filter(is_it).count()
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_copy_of_a_password_stays_in_memory() {
    let name = "credentials::no_copy_of_a_password_stays_in_memory";
    in_child_process(name, search_for_a_refused_password);
}

#[cfg(target_os = "linux")]
fn search_for_a_refused_password() {
    // No user has this password, so the broker refuses it.
    let hidden: Vec<u8> = (0..32u8)
        .map(|index| index.wrapping_mul(37) ^ 0x91)
        .collect();
    for make in [
        |user: &str, secret: Secret| Credentials::plain(user, secret),
        |user: &str, secret: Secret| Credentials::amqplain(user, secret),
    ] {
        let credentials = make("guest", memory::canary(&hidden));
        assert_ne!(
            memory::copies(&hidden),
            0,
            "the search must find the canary"
        );
        expect_error!(
            open(credentials.clone()),
            Error::AuthenticationFailed { .. }
        );
        assert_eq!(
            memory::copies(&hidden),
            1,
            "only the credentials may have a copy"
        );
        credentials.erase();
        assert_eq!(memory::copies(&hidden), 0);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_copy_of_a_provided_password_stays_in_memory_after_the_attempt() {
    let name = "credentials::no_copy_of_a_provided_password_stays_in_memory_after_the_attempt";
    in_child_process(name, search_for_a_provided_password);
}

#[cfg(target_os = "linux")]
fn search_for_a_provided_password() {
    // No user has this password, so the broker refuses it.
    let hidden: Vec<u8> = (0..32u8)
        .map(|index| index.wrapping_mul(43) ^ 0x95)
        .collect();
    let provided = hidden.clone();
    let provider = Credentials::provider(move || {
        let password = memory::canary(&provided);
        assert_ne!(
            memory::copies(&provided),
            0,
            "the search must find the canary"
        );
        Ok(Credentials::plain("guest", password))
    });
    for _ in 0..2 {
        expect_error!(open(provider.clone()), Error::AuthenticationFailed { .. });
        assert_eq!(memory::copies(&hidden), 0);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_fresh_secret_stays_in_memory_only_for_recovery_and_until_the_end_of_the_connection() {
    let name = "credentials::\
        a_fresh_secret_stays_in_memory_only_for_recovery_and_until_the_end_of_the_connection";
    in_child_process(name, search_for_a_fresh_secret);
}

#[cfg(target_os = "linux")]
fn search_for_a_fresh_secret() {
    let hidden: Vec<u8> = (0..32u8)
        .map(|index| index.wrapping_mul(41) ^ 0x83)
        .collect();
    for (recovery, copies) in [(None, 0), (Some(Recovery::new()), 1)] {
        let parameters: ConnectionParameters = url().parse().unwrap();
        let connection = BlockingConnection::open(parameters.recovery(recovery)).unwrap();
        for _ in 0..2 {
            let secret = memory::canary(&hidden);
            assert_ne!(
                memory::copies(&hidden),
                0,
                "the search must find the canary"
            );
            connection.update_secret(secret, "a canary").unwrap();
            assert_eq!(memory::copies(&hidden), copies);
        }
        connection.close().unwrap();
        assert_eq!(memory::copies(&hidden), 0);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_copy_of_a_password_of_a_url_stays_in_memory() {
    let name = "credentials::no_copy_of_a_password_of_a_url_stays_in_memory";
    in_child_process(name, search_for_a_password_of_a_url);
}

#[cfg(target_os = "linux")]
fn search_for_a_password_of_a_url() {
    let letters = |index: u8| (b'a' + index.wrapping_mul(7) % 26) ^ 0x5a;
    let hidden: Vec<u8> = (0..32).map(letters).collect();
    let canary = memory::canary(&hidden);
    let canary = std::str::from_utf8(canary.as_bytes()).unwrap();
    // `try_from` gets the text and wipes it. The capacity is reserved, because a text that grows
    // would leave a copy behind.
    let mut url = String::with_capacity(200);
    for part in [
        "amqp://guest:",
        canary,
        "%20@localhost/?auth_mechanism=amqplain",
    ] {
        url.push_str(part);
    }
    let parameters = ConnectionParameters::try_from(url).unwrap();
    assert_eq!(
        memory::copies(&hidden),
        2,
        "only the test and the credentials may have a copy"
    );
    drop(parameters);
    assert_eq!(memory::copies(&hidden), 1);
}
