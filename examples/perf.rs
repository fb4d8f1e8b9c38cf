//! Measures how fast messages go through a broker, or through this library alone.
//!
//!     cargo run --release --example perf -- SCENARIO [OPTION...]
//!
//! `--help` lists the scenarios and options. The example prints the rate once a second to standard
//! error, and at the end the whole run as one line of JSON to standard output.

use std::env::VarError;
use std::fmt;
use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Barrier, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use cony::{
    BasicProperties, BlockingChannel, BlockingConnection, Bytes, ConnectionParameters,
    DeliveryMode, Error, FieldTable, Message, Result, basic, queue,
};

const HELP: &str = "\
Usage: perf SCENARIO [OPTION...]

Scenarios:
  publish                 publish without confirms
  publish-confirm-window  publish with confirms, many outstanding at a time
  publish-confirm-each    wait for the confirm of each message before the next one
  consume-noack           consume without acknowledgements
  consume-ack             consume, and acknowledge each message
  get                     basic.get, one message after the other
  rpc                     passive queue.declare, one after the other: bare round trips

Options:
  --url URL          the broker; amqps:// for TLS. Default: AMQP_URL, or else
                     amqp://guest:guest@localhost:5672/%2f
  --messages N       end after N messages on each channel; messages to consume are
                     published before the clock starts
  --seconds S        without --messages: end after S seconds (10). Queues then keep the
                     newest 64 MiB, and other connections publish the messages to
                     consume in the meantime
  --size BYTES       the size of a body (16)
  --persistent       publish persistent messages
  --connections N    how many connections (1)
  --channels N       how many channels on each, each with a thread and a queue (1)
  --threads N        the same, but --messages is for all of them together
  --shared           all threads of a connection publish on one channel
  --prefetch N       how many unacknowledged messages a consumer gets (500)
  --window N         how many unconfirmed messages a channel may have (1000)
  --read-budget MIB  the read budget of each connection (64)
  --busy-wait US     how many microseconds a thread spins before it sleeps, in round
                     trips; 0 is off (100)

The queues are exclusive, so the broker deletes them at the end. Processor time,
context switches and memory are those of the whole process, and known only on Linux.
";

/// The tag of every consumer. Each consumer has its own channel, so one tag is enough.
const CONSUMER_TAG: &str = "perf";

/// The limit of a queue in bytes, if the run ends after a time.
const QUEUE_BYTES: i64 = 64 << 20;

/// The number of messages in the name of a queue, if the run ends after a time.
const UNBOUNDED: u64 = u32::MAX as u64;

/// The largest `--read-budget` in MiB. A larger number is probably meant in bytes.
const READ_BUDGET_MAX: usize = 2047;

/// The deadline of the last confirms.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let options = match Options::from_arguments(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("perf: {problem}; see --help");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(report) => {
            eprintln!("{report}");
            println!("{}", report.json());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("perf: {error}");
            ExitCode::FAILURE
        }
    }
}

// ------------------------------------------------------------ the command line --

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    Publish,
    PublishConfirmWindow,
    PublishConfirmEach,
    ConsumeNoack,
    ConsumeAck,
    Get,
    Rpc,
}

impl Scenario {
    const ALL: [(&str, Self); 7] = [
        ("publish", Self::Publish),
        ("publish-confirm-window", Self::PublishConfirmWindow),
        ("publish-confirm-each", Self::PublishConfirmEach),
        ("consume-noack", Self::ConsumeNoack),
        ("consume-ack", Self::ConsumeAck),
        ("get", Self::Get),
        ("rpc", Self::Rpc),
    ];

    fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, scenario)| *scenario)
    }

    fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, known)| *known == self);
        found.map_or("", |(name, _)| name)
    }

    fn publishes(self) -> bool {
        self == Self::Publish || self.confirms()
    }

    fn confirms(self) -> bool {
        matches!(self, Self::PublishConfirmWindow | Self::PublishConfirmEach)
    }

    fn consumes(self) -> bool {
        matches!(self, Self::ConsumeNoack | Self::ConsumeAck)
    }

    /// Returns whether the scenario takes messages from the queue.
    fn takes_messages(self) -> bool {
        self.consumes() || self == Self::Get
    }
}

#[derive(Debug)]
struct Options {
    scenario: Scenario,
    url: Option<String>,
    messages: Option<u64>,
    seconds: u64,
    size: usize,
    persistent: bool,
    connections: usize,
    channels: usize,
    threads: Option<usize>,
    is_shared: bool,
    prefetch: u16,
    window: usize,
    read_budget: usize,
    busy_wait: Option<u64>,
}

impl Options {
    /// Parses the command line. `None` stands for `--help`.
    fn from_arguments(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Option<Self>, String> {
        let mut options = Self {
            scenario: Scenario::Publish,
            url: match std::env::var("AMQP_URL") {
                Ok(url) => Some(url).filter(|url| !url.is_empty()),
                Err(VarError::NotPresent) => None,
                Err(VarError::NotUnicode(_)) => return Err("AMQP_URL is not UTF-8".into()),
            },
            messages: None,
            seconds: 10,
            size: 16,
            persistent: false,
            connections: 1,
            channels: 1,
            threads: None,
            is_shared: false,
            prefetch: 500,
            window: 1000,
            read_budget: 64,
            busy_wait: None,
        };
        let mut scenario = None;
        while let Some(argument) = arguments.next() {
            let name = argument.as_str();
            let value = &mut arguments;
            match name {
                "--help" | "-h" => return Ok(None),
                "--persistent" => options.persistent = true,
                "--url" => options.url = Some(value.next().ok_or("--url needs a value")?),
                "--messages" => options.messages = Some(number(name, value.next())?),
                "--seconds" => options.seconds = number(name, value.next())?,
                "--size" => options.size = number(name, value.next())?,
                "--connections" => options.connections = number(name, value.next())?,
                "--channels" => options.channels = number(name, value.next())?,
                "--threads" => options.threads = Some(number(name, value.next())?),
                "--shared" => options.is_shared = true,
                "--prefetch" => options.prefetch = number(name, value.next())?,
                "--window" => options.window = number(name, value.next())?,
                "--read-budget" => options.read_budget = number(name, value.next())?,
                "--busy-wait" => options.busy_wait = Some(number(name, value.next())?),
                _ => match Scenario::named(name) {
                    Some(named) if scenario.is_none() => scenario = Some(named),
                    Some(_) => return Err(format!("one scenario, not '{name}' as well")),
                    None => return Err(format!("there is no scenario or option '{name}'")),
                },
            }
        }
        options.channels = options.threads.unwrap_or(options.channels);
        if options.connections == 0 || options.channels == 0 {
            return Err("at least one connection with one channel".into());
        }
        options.scenario = scenario.ok_or("which scenario?")?;
        if options.is_shared && !options.scenario.publishes() {
            return Err("--shared is for those who publish".into());
        }
        options.check_read_budget()?;
        Ok(Some(options))
    }

    fn check_read_budget(&self) -> std::result::Result<(), String> {
        match self.read_budget {
            1..=READ_BUDGET_MAX => Ok(()),
            given => Err(format!(
                "--read-budget is in MiB, from 1 to {READ_BUDGET_MAX}, not {given}"
            )),
        }
    }

    /// Returns how many messages the worker with this number handles, if `--messages` ends the run.
    fn goal(&self, number: usize) -> Option<u64> {
        let messages = self.messages?;
        let Some(threads) = self.threads else {
            return Some(messages);
        };
        let all = (threads * self.connections) as u64;
        Some(messages / all + u64::from((number as u64) < messages % all))
    }

    fn parameters(&self) -> Result<ConnectionParameters> {
        let parameters = match &self.url {
            Some(url) => url.parse()?,
            None => ConnectionParameters::default(),
        };
        let parameters = parameters
            .confirm_window(self.window)
            .read_budget(self.read_budget << 20);
        Ok(match self.busy_wait {
            Some(us) => parameters.busy_wait(Duration::from_micros(us)),
            None => parameters,
        })
    }
}

fn number<N>(option: &str, value: Option<String>) -> std::result::Result<N, String>
where
    N: std::str::FromStr<Err = std::num::ParseIntError>,
{
    value
        .ok_or_else(|| format!("{option} needs a value"))?
        .parse()
        .map_err(|error| format!("{option} needs a number ({error})"))
}

// -------------------------------------------------------------------- one run --

fn run(options: &Options) -> Result<Report<'_>> {
    let stop = AtomicBool::new(false);
    let mut connections = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..options.connections {
        let connection = BlockingConnection::open(options.parameters()?)?;
        let shared = connection.channel()?;
        for _ in 0..options.channels {
            let channel = match options.is_shared {
                true => shared.clone(),
                false => connection.channel()?,
            };
            workers.push(Worker::prepare(options, channel, workers.len(), &stop)?);
        }
        connections.push(connection);
    }
    let cost = measure(&workers, options, &stop)?;
    for connection in connections {
        // Recovery passes over a loss, but the figures would contain the outage.
        let stats = connection.stats();
        if stats.recovering || stats.epoch > 1 {
            return Err(Error::other("a connection was lost during the measurement"));
        }
        connection.close()?;
    }
    Ok(Report {
        options,
        messages: done_by(&workers),
        spread: spread(&workers),
        cost,
    })
}

/// Returns the seconds of the fastest and of the slowest worker.
fn spread(workers: &[Worker<'_>]) -> (f64, f64) {
    let took = workers.iter().filter_map(|worker| worker.took.get());
    took.map(Duration::as_secs_f64)
        .fold((f64::MAX, 0.0), |(fast, slow), took| {
            (fast.min(took), slow.max(took))
        })
}

/// Runs all workers, each in a thread of its own, and measures the cost.
fn measure(workers: &[Worker<'_>], options: &Options, stop: &AtomicBool) -> Result<Cost> {
    let (ended, outcomes) = mpsc::channel();
    let gate = Barrier::new(workers.len() + 1);
    // Keeps the threads alive until `clock` has read their usage.
    let hold = Mutex::new(());
    thread::scope(|scope| {
        let held = hold.lock();
        for worker in workers {
            let ended = ended.clone();
            let (gate, hold) = (&gate, &hold);
            if worker.is_fed {
                let ended = ended.clone();
                scope.spawn(move || worker.feed().or_else(|error| ended.send(Err(error))));
            }
            scope.spawn(move || {
                gate.wait();
                gate.wait();
                // Fails only if `watch` has already returned because of another worker.
                let _ = ended.send(worker.run());
                drop(ended);
                drop(hold.lock());
            });
        }
        drop(ended);
        gate.wait();
        let clock = Clock::start();
        gate.wait();
        let outcome = watch(workers, options, stop, &outcomes);
        let cost = clock.stop();
        drop(held);
        outcome.map(|()| cost)
    })
}

/// Waits for the end of all workers, and prints the rate once a second.
fn watch(
    workers: &[Worker<'_>],
    options: &Options,
    stop: &AtomicBool,
    outcomes: &Receiver<Result<()>>,
) -> Result<()> {
    let start = Instant::now();
    let (mut second, mut shown) = (0, 0);
    let mut result = Ok(());
    loop {
        let next = start + Duration::from_secs(second + 1);
        match outcomes.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Ok(())) => {}
            Ok(failed) => {
                result = result.and(failed);
                stop_all(workers, stop);
            }
            Err(RecvTimeoutError::Timeout) => {
                second += 1;
                let done = done_by(workers);
                show_rate(second, done - shown, options.size);
                shown = done;
                if options.messages.is_none() && second >= options.seconds {
                    stop_all(workers, stop);
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                stop_all(workers, stop);
                return result;
            }
        }
    }
}

fn show_rate(second: u64, messages: u64, size: usize) {
    let megabytes = messages as f64 * size as f64 / 1e6;
    eprintln!("{second:>5} s {messages:>10} msg/s {megabytes:>9.1} MB/s");
}

fn done_by(workers: &[Worker<'_>]) -> u64 {
    workers
        .iter()
        .map(|worker| worker.done.load(Ordering::Relaxed))
        .sum()
}

fn stop_all(workers: &[Worker<'_>], stop: &AtomicBool) {
    if stop.swap(true, Ordering::Relaxed) {
        return;
    }
    for worker in workers.iter().filter(|it| it.options.scenario.consumes()) {
        // Wakes workers that wait for a delivery. If the channel has ended, the worker itself
        // returns the error.
        let _ = worker.channel.basic_cancel(CONSUMER_TAG);
    }
}

/// One channel with its queue, and its progress.
struct Worker<'a> {
    options: &'a Options,
    channel: BlockingChannel,
    queue: String,
    /// Whether another connection publishes the messages in the meantime.
    is_fed: bool,
    body: Bytes,
    properties: BasicProperties,
    goal: u64,
    done: AtomicU64,
    took: OnceLock<Duration>,
    stop: &'a AtomicBool,
}

impl<'a> Worker<'a> {
    /// Does everything that happens before the clock starts.
    fn prepare(
        options: &'a Options,
        channel: BlockingChannel,
        number: usize,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let properties = match options.persistent {
            true => BasicProperties::new().delivery_mode(DeliveryMode::Persistent),
            false => BasicProperties::new(),
        };
        // A broker that is made for such measurements reads size and number from the name.
        let holds = options.goal(number).unwrap_or(UNBOUNDED);
        let (size, process) = (options.size, std::process::id());
        let mut worker = Self {
            options,
            channel,
            queue: format!("bench.s{size}.n{holds}.{process}-{number}"),
            is_fed: false,
            body: vec![b'x'; size].into(),
            properties,
            goal: options.goal(number).unwrap_or(u64::MAX),
            done: AtomicU64::new(0),
            took: OnceLock::new(),
            stop,
        };
        let held = worker.declare_queue()?;
        if options.scenario.takes_messages() {
            match options.goal(number) {
                Some(wanted) if held < wanted => worker.fill_queue(wanted)?,
                Some(_) => {}
                None => worker.is_fed = held == 0,
            }
        }
        if options.scenario.confirms() {
            worker.channel.confirm_delivery()?;
        }
        if options.scenario == Scenario::ConsumeAck {
            worker.channel.basic_qos(options.prefetch)?;
        }
        Ok(worker)
    }

    fn declare_queue(&self) -> Result<u64> {
        let mut arguments = FieldTable::new();
        if self.options.messages.is_none() {
            arguments.insert("x-max-length-bytes", QUEUE_BYTES);
        }
        let declare = queue::Declare::new(&self.queue)
            .exclusive(true)
            .arguments(arguments);
        Ok(self.channel.queue_declare(declare)?.message_count.into())
    }

    fn fill_queue(&self, wanted: u64) -> Result<()> {
        for _ in 0..wanted {
            self.channel
                .basic_publish("", &self.queue, self.message())?;
        }
        while self.ready()? < wanted {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Publishes to the queue, on a connection of its own, until the run ends.
    fn feed(&self) -> Result<()> {
        let channel = BlockingConnection::open(self.options.parameters()?)?.channel()?;
        // The confirm window limits how far the publishes run ahead of the broker.
        channel.confirm_delivery()?;
        while !self.stop.load(Ordering::Relaxed) {
            channel.basic_publish("", &self.queue, self.message())?;
        }
        Ok(())
    }

    fn message(&self) -> Message<'_> {
        let message = Message::from(&self.body);
        match self.options.persistent {
            true => message.properties(&self.properties),
            false => message,
        }
    }

    /// Returns how many messages are ready in the queue: one round trip without a message.
    fn ready(&self) -> Result<u64> {
        let passive = queue::Declare::new(&self.queue).passive(true);
        Ok(self.channel.queue_declare(passive)?.message_count.into())
    }

    /// Stores the progress, and returns whether there is more to do.
    fn goes_on(&self, done: u64) -> bool {
        self.done.store(done, Ordering::Relaxed);
        done < self.goal && !self.stop.load(Ordering::Relaxed)
    }

    /// Runs the part that is measured.
    fn run(&self) -> Result<()> {
        let start = Instant::now();
        let outcome = self.run_scenario();
        // Cannot fail, because each worker runs once.
        let _ = self.took.set(start.elapsed());
        outcome
    }

    fn run_scenario(&self) -> Result<()> {
        match self.options.scenario {
            Scenario::Publish => self.publish(),
            Scenario::PublishConfirmWindow => self.publish_confirm_window(),
            Scenario::PublishConfirmEach => self.publish_confirm_each(),
            Scenario::ConsumeNoack => self.consume_noack(),
            Scenario::ConsumeAck => self.consume_ack(),
            Scenario::Get => self.get(),
            Scenario::Rpc => self.rpc(),
        }
    }

    fn publish(&self) -> Result<()> {
        let mut count = 0;
        while self.goes_on(count) {
            self.channel
                .basic_publish("", &self.queue, self.message())?;
            count += 1;
        }
        // The reply proves that all messages have arrived.
        self.ready().map(drop)
    }

    fn publish_confirm_window(&self) -> Result<()> {
        let mut count = 0;
        while self.goes_on(count) {
            // Waits while the confirm window is full.
            self.channel
                .basic_publish("", &self.queue, self.message())?;
            count += 1;
        }
        self.channel.wait_for_confirms(PATIENCE)
    }

    fn publish_confirm_each(&self) -> Result<()> {
        let mut count = 0;
        while self.goes_on(count) {
            self.channel
                .basic_publish("", &self.queue, self.message())?
                .wait()?;
            count += 1;
        }
        Ok(())
    }

    fn consume_noack(&self) -> Result<()> {
        let consume = basic::Consume::new(&self.queue)
            .consumer_tag(CONSUMER_TAG)
            .no_ack(true);
        let consumer = self.channel.consume(consume)?;
        let (mut count, mut bytes) = (0, 0);
        while self.goes_on(count) {
            let Some(delivery) = consumer.recv()? else {
                break;
            };
            bytes += delivery.body.len() as u64;
            count += 1;
        }
        self.check(count, bytes)
    }

    fn consume_ack(&self) -> Result<()> {
        let consume = basic::Consume::new(&self.queue).consumer_tag(CONSUMER_TAG);
        let consumer = self.channel.consume(consume)?;
        let (mut count, mut bytes) = (0, 0);
        while self.goes_on(count) {
            let Some(delivery) = consumer.recv()? else {
                break;
            };
            bytes += delivery.body.len() as u64;
            delivery.ack()?;
            count += 1;
        }
        // The reply proves that all acknowledgements have arrived.
        self.ready()?;
        self.check(count, bytes)
    }

    fn get(&self) -> Result<()> {
        let (mut count, mut bytes) = (0, 0);
        while self.goes_on(count) {
            let get = basic::Get::new(&self.queue).no_ack(true);
            match self.channel.basic_get(get)? {
                Some(message) => {
                    bytes += message.body.len() as u64;
                    count += 1;
                }
                None if self.is_fed => {}
                None => return Err(Error::other("the queue is empty too early")),
            }
        }
        self.check(count, bytes)
    }

    fn rpc(&self) -> Result<()> {
        let mut count = 0;
        while self.goes_on(count) {
            self.ready()?;
            count += 1;
        }
        Ok(())
    }

    /// Fails if the received bodies do not have the published size.
    fn check(&self, messages: u64, bytes: u64) -> Result<()> {
        let expected = messages * self.options.size as u64;
        if bytes == expected {
            return Ok(());
        }
        let problem = format!("{messages} messages had {bytes} bytes instead of {expected}");
        Err(Error::other(problem))
    }
}

// ----------------------------------------------------------------------- the cost --

struct Report<'a> {
    options: &'a Options,
    messages: u64,
    /// The seconds of the fastest and of the slowest thread.
    spread: (f64, f64),
    cost: Cost,
}

impl Report<'_> {
    /// Returns the line for programs.
    fn json(&self) -> String {
        let cost = &self.cost;
        format!(
            "{{\"client\":\"cony\",\"scenario\":\"{}\",\"messages\":{},\"size\":{},\
             \"seconds\":{:.6},\"cpu_user\":{:.6},\"cpu_sys\":{:.6},\"max_rss_kb\":{},\
             \"nvcsw\":{},\"nivcsw\":{},\"fastest\":{:.6},\"slowest\":{:.6}}}",
            self.options.scenario.name(),
            self.messages,
            self.options.size,
            cost.wall.as_secs_f64(),
            cost.user,
            cost.system,
            cost.peak_kib,
            cost.voluntary_switches,
            cost.involuntary_switches,
            self.spread.0,
            self.spread.1,
        )
    }
}

/// The line for people.
impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (messages, seconds) = (self.messages as f64, self.cost.wall.as_secs_f64());
        let cpu = self.cost.user + self.cost.system;
        write!(
            f,
            "{}: {} messages in {seconds:.2} s: {:.0} msg/s, {:.1} MB/s, {:.2} us CPU each, \
             at most {:.1} MB of memory",
            self.options.scenario.name(),
            self.messages,
            messages / seconds,
            messages * self.options.size as f64 / seconds / 1e6,
            1e6 * cpu / messages.max(1.0),
            self.cost.peak_kib as f64 / 1024.0,
        )?;
        match self.options.channels {
            1 => Ok(()),
            _ => {
                let (fastest, slowest) = self.spread;
                write!(f, ", threads took {fastest:.2} to {slowest:.2} s")
            }
        }
    }
}

/// The cost of a run. Processor times are in seconds.
struct Cost {
    wall: Duration,
    user: f64,
    system: f64,
    voluntary_switches: u64,
    involuntary_switches: u64,
    peak_kib: u64,
}

struct Clock {
    usage: Usage,
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        let usage = Usage::now();
        let start = Instant::now();
        Self { usage, start }
    }

    fn stop(self) -> Cost {
        let wall = self.start.elapsed();
        let (before, now) = (self.usage, Usage::now());
        let cpu = Duration::from_nanos(now.nanoseconds.saturating_sub(before.nanoseconds));
        let user = now.user_ticks.saturating_sub(before.user_ticks) as f64;
        let system = now.system_ticks.saturating_sub(before.system_ticks) as f64;
        let share = user / (user + system).max(1.0);
        Cost {
            wall,
            user: cpu.as_secs_f64() * share,
            system: cpu.as_secs_f64() * (1.0 - share),
            voluntary_switches: now.voluntary.saturating_sub(before.voluntary),
            involuntary_switches: now.involuntary.saturating_sub(before.involuntary),
            peak_kib: after(&read("/proc/self/status"), "VmHWM:"),
        }
    }
}

/// The usage so far of all threads that are alive, from Linux.
#[derive(Default)]
struct Usage {
    /// Exact, but user and system time together.
    nanoseconds: u64,
    /// Hundredths of a second. Too coarse to measure with, but good for the ratio of the two.
    user_ticks: u64,
    system_ticks: u64,
    voluntary: u64,
    involuntary: u64,
}

impl Usage {
    fn now() -> Self {
        let mut usage = Self::default();
        let stat = read("/proc/self/stat");
        // The 12th and 13th field after the name. The name itself may contain any character.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let mut ticks = fields.split_whitespace().skip(11);
        usage.user_ticks = number_or_zero(ticks.next());
        usage.system_ticks = number_or_zero(ticks.next());
        for thread in fs::read_dir("/proc/self/task").into_iter().flatten() {
            let Ok(path) = thread.map(|thread| thread.path()) else {
                continue;
            };
            let schedstat = read(path.join("schedstat"));
            usage.nanoseconds += number_or_zero(schedstat.split_whitespace().next());
            let status = read(path.join("status"));
            usage.voluntary += after(&status, "voluntary_ctxt_switches:");
            usage.involuntary += after(&status, "nonvoluntary_ctxt_switches:");
        }
        usage
    }
}

fn read(path: impl AsRef<std::path::Path>) -> String {
    // The file is missing if the thread has ended, and on other systems.
    fs::read_to_string(path).unwrap_or_default()
}

/// Returns the number on the line that begins with `name`.
fn after(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    number_or_zero(line.and_then(|line| line.split_whitespace().next()))
}

fn number_or_zero(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}
