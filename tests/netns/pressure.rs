//! Clients and targets that behave badly, in numbers: memory stays bounded, and others are served.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use egret::forward::Descriptors;
use socket2::{Domain, Socket, Type};

use crate::api::{listener, memory_kib, report, server, target, wait_states};
use crate::lab::{
    Asked, Asking, DEADLINE, Egret, Failure, Host, INTERNET, INTERNET_2, Lab, Options, PUBLIC, Result, answers,
    ask, connect, inside, wait_for,
};

/// A target that takes connections, as far as its kernel does, and says nothing.
fn silent(host: &Host, port: u16) -> Result<TcpListener> {
    inside(host, move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    })?
}

fn wait_open(lab: &Lab, egret: &Egret, name: &str, open: u64) -> Result {
    lab.nat().wait_for(&format!("{open} connections"), || Ok(report(egret, name)?["connections"] == open))
}

#[test]
fn silence_is_ended_by_the_idle_time_and_costs_nobody_else_anything() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = server(&lab, 1)?;
    let _silent = silent(lab.client(2), 6000)?;
    let slow = listener("slow", 6000, &[format!("{}:6000", Lab::client_address(2))], "idle_timeout = \"2s\"");
    let egret =
        Egret::start(lab.nat(), &lab.config(&format!("{slow}{}", listener("api", 5000, &[target(1)], ""))))?;
    wait_states(&lab, &egret, "slow", &["healthy"])?;
    wait_states(&lab, &egret, "api", &["healthy"])?;
    let asking = Asking::start(&lab, 5000)?;
    let begun = Instant::now();
    // Clients that say nothing at all, and such that wait for the target's word.
    let clients = inside(lab.internet(), || {
        let connect = |number| {
            let mut client = TcpStream::connect((PUBLIC, 6000))?;
            // At once: its time runs.
            if number % 2 == 0 {
                client.write_all(b"hello")?;
            }
            Ok(client)
        };
        (0..200).map(connect).collect::<std::io::Result<Vec<_>>>()
    })??;
    for mut client in clients {
        client.set_read_timeout(Some(DEADLINE))?;
        let error = client.read(&mut [0; 8]).err().map(|error| error.kind());
        assert_eq!(error, Some(ErrorKind::ConnectionReset));
    }
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    lab.nat().wait_for("the ends", || Ok(report(&egret, "slow")?["ended"]["idle"] == 200))?;
    answers(asking.stop()?)?;
    Ok(())
}

#[test]
fn clients_that_never_read_cost_the_daemon_no_memory() -> Result {
    let lab = Lab::new(Options::default())?;
    let web = server(&lab, 1)?;
    web.put("large", 32 << 20)?;
    let config = lab.config(&listener("api", 5000, &[target(1)], "deregistration_delay = \"0s\""));
    let egret = Egret::start(lab.nat(), &config)?;
    wait_states(&lab, &egret, "api", &["healthy"])?;
    let before = memory_kib(egret.process.id())?;
    let mut clients = connect(&lab, 5000, 200)?;
    for client in &mut clients {
        client.write_all(b"GET /large HTTP/1.0\r\n\r\n")?;
    }
    wait_open(&lab, &egret, "api", 200)?;
    // Until nothing moves any more: all that is between server and client is full.
    let mut moved = 0;
    lab.nat().wait_for("the data to come to a halt", || {
        thread::sleep(Duration::from_millis(300));
        let now = lab.nat().run("cat /sys/class/net/ens5/statistics/tx_bytes")?.trim().parse::<u64>()?;
        // Checks go on.
        Ok(now - std::mem::replace(&mut moved, now) < 100_000 && now > 200 << 16)
    })?;
    let grown = memory_kib(egret.process.id())?.saturating_sub(before);
    assert!(grown < 4 << 10, "{grown} KiB for {moved} bytes");
    assert_eq!(inside(lab.internet(), || ask(PUBLIC, 5000))??, "server 1");
    drop(clients);
    wait_open(&lab, &egret, "api", 0)
}

#[test]
fn ten_thousand_connects_at_once_harm_only_themselves() -> Result {
    const FLOOD: usize = 10_000;
    const LIMIT: u64 = 3000;
    Descriptors::raise()?;
    let lab = Lab::new(Options::default())?;
    let _server = server(&lab, 1)?;
    let silent = silent(lab.client(2), 6000)?;
    let limit = format!("connection_limit = {LIMIT}");
    let flooded = listener("flooded", 6000, &[format!("{}:6000", Lab::client_address(2))], &limit);
    let config = lab.config(&format!("{flooded}{}", listener("api", 5000, &[target(1)], "")));
    let egret = Egret::start(lab.nat(), &config)?;
    wait_states(&lab, &egret, "flooded", &["healthy"])?;
    wait_states(&lab, &egret, "api", &["healthy"])?;
    let before = memory_kib(egret.process.id())?;
    let asking = Asking::start(&lab, 5000)?;
    let clients = inside(lab.internet(), || {
        let to = SocketAddr::from((PUBLIC, 6000)).into();
        let connect = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            match socket.connect(&to) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                _ => Ok(socket),
            }
        };
        (0..FLOOD).map(connect).collect::<std::io::Result<Vec<_>>>()
    })??;
    // Whoever came too fast for the kernel comes again, after up to half a minute.
    wait_for("all to be let in or refused", DEADLINE * 4, || {
        let report = report(&egret, "flooded")?;
        let refused = report["refused"]["connection_limit"].as_u64().unwrap_or_default();
        Ok(report["opened"].as_u64().unwrap_or_default() + refused == FLOOD as u64)
    })?;
    assert_eq!(report(&egret, "flooded")?["connections"], LIMIT);
    let grown = memory_kib(egret.process.id())?.saturating_sub(before);
    assert!(grown < 24 << 10, "{grown} KiB");
    asking.wait_for("answers beside it", |asked| asked.len() > 10)?;
    answers(asking.stop()?)?;
    drop((clients, silent));
    wait_open(&lab, &egret, "flooded", 0)
}

#[test]
fn without_descriptors_accepting_pauses_and_is_counted() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = server(&lab, 1)?;
    // With soft limits alone it would help itself.
    let few = ["sh", "-c", "ulimit -n 256 && exec \"$@\"", "sh"];
    let config = lab.config(&listener("api", 5000, &[target(1)], ""));
    let mut egret = Egret::start_under(lab.nat(), &config, &few)?;
    wait_states(&lab, &egret, "api", &["healthy"])?;
    let mut clients = connect(&lab, 5000, 150)?;
    // Three quarters of 256, two for each.
    wait_open(&lab, &egret, "api", 96)?;
    // It may be more than one: a thread that was late for a client has room for the next one after all.
    lab.nat().wait_for("a pause", || Ok(report(&egret, "api")?["accept_pauses"].as_u64() > Some(0)))?;
    egret.process.wait_for_log("accepting pauses")?;
    assert_eq!(egret.process.log().matches("accepting pauses").count(), 1);
    let mut page = String::new();
    clients[0].write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    clients[0].read_to_string(&mut page)?;
    assert!(page.ends_with("server 1\n"), "those who are in are served: {page}");
    // Whoever has waited is let in, in the place of those that go.
    clients.drain(..100);
    wait_open(&lab, &egret, "api", 50)?;
    let mut page = String::new();
    clients[49].write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    clients[49].read_to_string(&mut page)?;
    assert!(page.ends_with("server 1\n"), "{page}");
    assert_eq!(report(&egret, "api")?["ended"]["unserved"], 0);
    Ok(())
}

#[test]
fn soft_limit_of_descriptors_is_raised_to_the_hard_one() -> Result {
    let lab = Lab::new(Options::default())?;
    let few = ["sh", "-c", "ulimit -Sn 200 && exec \"$@\"", "sh"];
    let egret = Egret::start_under(lab.nat(), &lab.config(""), &few)?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", egret.process.id()))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    assert!(words[3] == words[4] && words[3] != "200", "{words:?}");
    Ok(())
}

#[test]
fn door_keeps_its_limits_and_the_log_has_a_line_for_each_connection() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = server(&lab, 1)?;
    let more = format!("allow = [\"{INTERNET}\"]\nconnection_limit = 3\naccess_log = true");
    let rate = "new_connections_per_second = 2";
    let config = lab.config(&format!(
        "{}{}",
        listener("door", 5000, &[target(1)], &more),
        listener("rate", 5001, &[target(1)], rate)
    ));
    let mut egret = Egret::start(lab.nat(), &config)?;
    wait_states(&lab, &egret, "door", &["healthy"])?;
    let curl = |address| format!("curl -sS --max-time 5 --interface {address} http://{PUBLIC}:5000/");
    assert_eq!(lab.internet().run(&curl(INTERNET))?, "server 1\n");
    assert!(!lab.internet().try_run(&curl(INTERNET_2))?.status.success(), "somebody else was let in");
    egret.process.wait_for_log("ended=\"closed\"")?;
    let log = egret.process.log();
    let line = log.lines().find(|line| line.contains("ended=\"closed\"")).unwrap_or_default();
    for part in [
        "listener=\"door\"",
        &format!("client={INTERNET}:"),
        &format!("target={}", target(1)),
        "bytes_to_target=",
        "bytes_to_client=",
        "seconds=",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    wait_open(&lab, &egret, "door", 0)?;
    let _three = connect(&lab, 5000, 3)?;
    wait_open(&lab, &egret, "door", 3)?;
    assert!(!lab.internet().try_run(&curl(INTERNET))?.status.success(), "a fourth was let in");
    let refused = report(&egret, "door")?["refused"].clone();
    assert_eq!((&refused["not_allowed"], &refused["connection_limit"]), (&1.into(), &1.into()), "{refused}");
    // All come at once, however long it then takes to serve them.
    let come = inside(lab.internet(), || {
        // Whoever is refused may hear of it before anything else.
        let connect = |_| TcpStream::connect((PUBLIC, 5001)).ok();
        (0..20).filter_map(connect).collect::<Vec<_>>()
    })?;
    let let_in = come.into_iter().filter_map(|mut stream| {
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        page.ends_with("server 1\n").then_some(())
    });
    let let_in = let_in.count();
    lab.nat().wait_for("the others to be counted", || {
        Ok(report(&egret, "rate")?["refused"]["rate_limit"] == 20 - let_in)
    })?;
    assert!((2..20).contains(&let_in), "{let_in} of 20");
    Ok(())
}

/// Bytes that are different from place to place.
fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 11).to_be_bytes()[7]
}

fn send(mut stream: &TcpStream, length: usize) -> std::io::Result<()> {
    let mut chunk = vec![0; 64 << 10];
    for start in (0..length).step_by(chunk.len()) {
        let count = chunk.len().min(length - start);
        for (offset, byte) in chunk[..count].iter_mut().enumerate() {
            *byte = pattern(start + offset);
        }
        stream.write_all(&chunk[..count])?;
    }
    stream.shutdown(Shutdown::Write)
}

/// How much came before the end, if all of it was as sent.
fn receive(mut stream: &TcpStream) -> std::io::Result<usize> {
    let (mut chunk, mut at) = (vec![0; 64 << 10], 0);
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(at);
        }
        if let Some(wrong) = (0..count).find(|offset| chunk[*offset] != pattern(at + offset)) {
            return Err(std::io::Error::other(format!("byte {} is another", at + wrong)));
        }
        at += count;
    }
}

#[test]
fn fifty_megabytes_come_through_each_way_and_either_side_may_end_first() -> Result {
    const LARGE: usize = 50_000_000;
    let lab = Lab::new(Options::default())?;
    let server = silent(lab.client(1), 5000)?;
    let unchecked = "on_unhealthy = \"keep\"";
    let config = lab.config(&listener("api", 5000, &[target(1)], unchecked).replace("\"200ms\"", "\"60s\""));
    let egret = Egret::start(lab.nat(), &config)?;
    let accept = || -> Result<TcpStream> {
        // A check says nothing, and is reset.
        loop {
            let (stream, _) = server.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            if matches!(stream.peek(&mut [0]), Ok(1..)) {
                return Ok(stream);
            }
        }
    };
    let mut client = connect(&lab, 5000, 1)?.remove(0);
    client.write_all(&[pattern(0)])?;
    let target = accept()?;
    // What has come already is a part of what is sent.
    target.set_nonblocking(false)?;
    (&target).read_exact(&mut [0])?;
    let results = thread::scope(|scope| {
        let tasks = [
            scope.spawn(|| send(&client, LARGE).map(|()| LARGE)),
            scope.spawn(|| send(&target, LARGE).map(|()| LARGE)),
            scope.spawn(|| receive(&client)),
            scope.spawn(|| receive(&target)),
        ];
        tasks.map(|task| task.join().map_err(|_| Failure::new("a transfer has panicked")))
    });
    for result in results {
        assert_eq!(result??, LARGE);
    }
    // The client has said all, and hears; the target has said all, and hears.
    for client_first in [true, false] {
        let mut client = connect(&lab, 5000, 1)?.remove(0);
        client.write_all(b"?")?;
        let mut target = accept()?;
        target.read_exact(&mut [0])?;
        let (first, then) = if client_first { (&mut client, &mut target) } else { (&mut target, &mut client) };
        first.shutdown(Shutdown::Write)?;
        assert_eq!(then.read(&mut [0; 8])?, 0);
        for word in [b"one", b"two"] {
            then.write_all(word)?;
            let mut heard = [0; 3];
            first.read_exact(&mut heard)?;
            assert_eq!(&heard, word);
        }
        then.shutdown(Shutdown::Write)?;
        assert_eq!(first.read(&mut [0; 8])?, 0);
    }
    lab.nat().wait_for("the ends", || Ok(report(&egret, "api")?["ended"]["closed"] == 3))
}

#[test]
fn server_that_dies_under_load_fails_no_request_once_it_is_marked() -> Result {
    let lab = Lab::new(Options::default())?;
    let (one, other) = (server(&lab, 1)?, server(&lab, 2)?);
    let egret = Egret::start(lab.nat(), &lab.config(&listener("api", 5000, &[target(1), target(2)], "")))?;
    wait_states(&lab, &egret, "api", &["healthy", "healthy"])?;
    let begun = Instant::now();
    let asking = [Asking::start(&lab, 5000)?, Asking::start(&lab, 5000)?];
    let wait_answers = |since: Instant, least: usize| {
        let are_had = |asked: &[Asked]| asked.iter().filter(|asked| asked.begun >= since).count() > least;
        asking.iter().try_for_each(|asking| asking.wait_for("answers", are_had))
    };
    wait_answers(begun, 10)?;
    drop(other);
    wait_states(&lab, &egret, "api", &["healthy", "unhealthy"])?;
    let marked = Instant::now();
    wait_answers(marked, 10)?;
    let _other = server(&lab, 2)?;
    wait_states(&lab, &egret, "api", &["healthy", "healthy"])?;
    let revived = Instant::now();
    wait_answers(revived, 10)?;
    for asking in asking {
        let (before, after): (Vec<Asked>, Vec<Asked>) =
            asking.stop()?.into_iter().partition(|asked| asked.begun < marked);
        assert!(before.iter().filter(|asked| asked.answer.is_err()).count() <= 2, "{before:?}");
        let (down, up): (Vec<Asked>, Vec<Asked>) = after.into_iter().partition(|asked| asked.begun < revived);
        assert!(answers(down)?.len() > 10);
        assert!(answers(up)?.contains(&"server 2".to_owned()), "it is asked again");
    }
    drop(one);
    Ok(())
}

/// More connections within a minute than there are ports towards the one target; the clients end them, so that it is the
/// proxy's ports that have to rest.
#[test]
fn short_connections_do_not_use_up_the_ports_towards_a_target() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = server(&lab, 1)?;
    let egret = Egret::start(lab.nat(), &lab.config(&listener("api", 5000, &[target(1)], "")))?;
    wait_states(&lab, &egret, "api", &["healthy"])?;
    let rounds = 3;
    for round in 1..=rounds {
        let begun = Instant::now();
        inside(lab.internet(), || -> std::io::Result<()> {
            thread::scope(|scope| {
                let worker = || -> std::io::Result<()> {
                    for _ in 0..500 {
                        let mut stream = TcpStream::connect((PUBLIC, 5000))?;
                        stream.shutdown(Shutdown::Write)?;
                        stream.read_to_end(&mut Vec::new())?;
                    }
                    Ok(())
                };
                let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
                workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
            })
        })?
        .map_err(|error| Failure::new(format!("{error}: {}", report(&egret, "api").unwrap_or_default())))?;
        // A port rests for a second.
        thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
        lab.nat().wait_for("the ends", || Ok(report(&egret, "api")?["ended"]["closed"] == round * 2_000))?;
    }
    assert_eq!(report(&egret, "api")?["ended"]["unserved"], 0);
    Ok(())
}
