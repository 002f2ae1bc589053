//! The clients of the proxies: this program again. Each kind runs for some time on one thread, and prints what it saw.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::EINPROGRESS;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv};

use super::super::lab::{Failure, Process, Result};
use super::backend::Request;

/// What a client did.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Bytes, requests or connections, in all.
    pub count: f64,
    /// Of these, in a second.
    pub rate: f64,
    /// What all but a hundredth of the requests or connections did not take longer than, in microseconds.
    pub tail: f64,
    /// The same of those of a [`SLICE`]: the median of all slices.
    pub slice_tail: f64,
}

impl Done {
    /// What a client that has ended has printed.
    pub fn read(process: &Process) -> Result<Self> {
        let log = process.log();
        let numbers: Vec<f64> = log.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [count, rate, tail, slice_tail] => Ok(Self { count, rate, tail, slice_tail }),
            _ => Err(Failure::new(format!("the client said: {log}"))),
        }
    }
}

/// Takes as much as comes by so many connections.
pub fn bulk(address: SocketAddr, connections: usize, time: Duration) -> Result<Done> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let streams =
        open(&epoll, address, connections, EpollFlags::EPOLLIN, Request { answer: u64::MAX, close: false })?;
    let mut measure = Measure::new(time);
    let mut room = vec![0; 4 << 20];
    let mut events = vec![EpollEvent::empty(); connections];
    while measure.goes_on() {
        let ready = epoll.wait(&mut events, WAIT)?;
        for event in &events[..ready] {
            let stream = &streams[usize::try_from(event.data())?];
            // Thrown away where it is.
            let taken = recv(stream.as_raw_fd(), &mut room, MsgFlags::MSG_TRUNC)?;
            if taken == 0 {
                return Err(Failure::new("the connection has ended"));
            }
            measure.add(taken as u64);
        }
    }
    Ok(measure.done())
}

/// Asks again when there is an answer, on each of so many connections.
pub fn requests(address: SocketAddr, connections: usize, time: Duration) -> Result<Done> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let request = Request { answer: ANSWER as u64, close: false };
    // What is left of an answer is told when it comes.
    let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    let mut streams = open(&epoll, address, connections, events, request)?;
    let mut room = [0; ANSWER];
    // The first answers wait for connections to the backend, which are made all at once.
    for stream in &mut streams {
        stream.read_exact(&mut room)?;
    }
    let mut measure = Measure::new(time);
    let mut asked = Vec::new();
    for stream in &mut streams {
        asked.push((Instant::now(), ANSWER));
        stream.write_all(&request.encode())?;
    }
    let mut events = vec![EpollEvent::empty(); connections];
    while measure.goes_on() {
        let ready = epoll.wait(&mut events, WAIT)?;
        for event in &events[..ready] {
            let index = usize::try_from(event.data())?;
            let (start, left) = &mut asked[index];
            let come = streams[index].read(&mut room)?;
            if come == 0 {
                return Err(Failure::new("the connection has ended"));
            }
            *left -= come;
            if *left == 0 {
                measure.add_timed(start.elapsed());
                (*start, *left) = (Instant::now(), ANSWER);
                streams[index].write_all(&request.encode())?;
            }
        }
    }
    Ok(measure.done())
}

/// Connects, asks, takes the answer and sees the end, so many at a time.
pub fn connections(address: SocketAddr, at_once: usize, time: Duration) -> Result<Done> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut dialogues = Vec::new();
    for index in 0..at_once {
        dialogues.push(Dialogue::begin(&epoll, address, index)?);
    }
    let mut measure = Measure::new(time);
    let mut events = vec![EpollEvent::empty(); at_once];
    while measure.goes_on() {
        let ready = epoll.wait(&mut events, WAIT)?;
        for event in &events[..ready] {
            let index = usize::try_from(event.data())?;
            if dialogues[index].go_on()? {
                measure.add_timed(dialogues[index].start.elapsed());
                dialogues[index] = Dialogue::begin(&epoll, address, index)?;
            }
        }
    }
    Ok(measure.done())
}

/// Opens so many connections, asks once on each, and holds them until it is ended.
pub fn hold(address: SocketAddr, connections: usize) -> Result<Done> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&Request { answer: ANSWER as u64, close: false }.encode())?;
        stream.read_exact(&mut [0; ANSWER])?;
        held.push(stream);
    }
    println!("{HOLDING} {}", held.len());
    loop {
        thread::park();
    }
}

/// What [`hold`] prints when it has all of them.
pub const HOLDING: &str = "holding";

fn open(
    epoll: &Epoll,
    address: SocketAddr,
    connections: usize,
    events: EpollFlags,
    request: Request,
) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for index in 0..connections {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.write_all(&request.encode())?;
        epoll.add(&stream, EpollEvent::new(events, index as u64))?;
        streams.push(stream);
    }
    Ok(streams)
}

struct Dialogue {
    stream: TcpStream,
    start: Instant,
    asked: bool,
}

impl Dialogue {
    fn begin(epoll: &Epoll, address: SocketAddr, index: usize) -> Result<Self> {
        let start = Instant::now();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM.nonblocking(), None)?;
        // The request acknowledges the handshake.
        socket.set_tcp_quickack(false)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error.into()),
            _ => {}
        }
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&socket, EpollEvent::new(events, index as u64))?;
        Ok(Self { stream: socket.into(), start, asked: false })
    }

    /// Gives whether it is over.
    fn go_on(&mut self) -> Result<bool> {
        if !self.asked {
            self.stream.write_all(&Request { answer: ANSWER as u64, close: true }.encode())?;
            self.asked = true;
            return Ok(false);
        }
        let mut room = [0; 2 * ANSWER];
        loop {
            match self.stream.read(&mut room) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Counts, and from the end of the warm-up on looks at the clock.
struct Measure {
    begin: Instant,
    end: Instant,
    all: u64,
    counted: u64,
    /// By when they were over, a [`SLICE`] each.
    slices: Vec<Vec<Duration>>,
    slice_end: Instant,
}

impl Measure {
    fn new(time: Duration) -> Self {
        let begin = Instant::now() + WARM_UP;
        Self { begin, end: begin + time, all: 0, counted: 0, slices: Vec::new(), slice_end: begin }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    fn add(&mut self, count: u64) {
        self.all += count;
        if Instant::now() >= self.begin {
            self.counted += count;
        }
    }

    fn add_timed(&mut self, time: Duration) {
        self.all += 1;
        let now = Instant::now();
        if now < self.begin {
            return;
        }
        self.counted += 1;
        if now >= self.slice_end {
            self.slice_end = now + SLICE;
            self.slices.push(Vec::new());
        }
        if let Some(slice) = self.slices.last_mut() {
            slice.push(time);
        }
    }

    fn done(self) -> Done {
        let rate = self.counted as f64 / self.begin.elapsed().as_secs_f64();
        let tail = quantile(self.slices.concat(), 99);
        let slice_tail = quantile(self.slices.into_iter().map(|slice| quantile(slice, 99)).collect(), 50);
        let [tail, slice_tail] = [tail, slice_tail].map(|time| time.as_secs_f64() * 1e6);
        Done { count: self.all as f64, rate, tail, slice_tail }
    }
}

/// What so many of a hundred of them do not exceed; zero if there are none.
fn quantile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

/// An answer of an API, with what HTTP adds.
const ANSWER: usize = 1024;
/// A virtual machine stands still now and then, idle or not, for some milliseconds, which all connections of the moment
/// wait for. It does not in most slices, so that their median is of what a proxy does.
pub const SLICE: Duration = Duration::from_millis(20);
const WARM_UP: Duration = Duration::from_millis(200);
/// Then the clock is looked at, whatever has come: in milliseconds.
const WAIT: u8 = 100;
