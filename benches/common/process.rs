//! What `/proc` tells about the machine and its processes.

#![allow(dead_code, reason = "each of its users needs another part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::lab::{Failure, Host, Result};

/// The processors, the kernel, and how busy they are without us.
pub fn machine() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let processors = std::thread::available_parallelism()?;
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let model = model.map_or(std::env::consts::ARCH, |(_, model)| model);
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split_whitespace().next().unwrap_or_default();
    Ok(format!("{processors} processors ({model}), Linux {}, load before {load}", release.trim()))
}

/// The name of a process.
pub fn name(id: u32) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/{id}/comm"))?.trim().to_owned())
}

/// Packets that an interface of the process's network namespace has received.
pub fn received(id: u32, interface: &str) -> Result<u64> {
    let path = format!("/proc/{id}/net/dev");
    let table = fs::read_to_string(&path)?;
    let rows = table.lines().filter_map(|line| line.trim().split_once(':'));
    let row = rows.into_iter().find(|(name, _)| *name == interface);
    let packets = row.and_then(|(_, row)| row.split_whitespace().nth(1)?.parse().ok());
    packets.ok_or_else(|| Failure::new(format!("no {interface} in {path}")))
}

/// Bytes of memory that the process really has, but for BPF maps that it has mapped: [`map_bytes`] counts those.
pub fn resident_bytes(id: u32) -> Result<u64> {
    let path = format!("/proc/{id}/smaps");
    let (mut is_map, mut kibibytes) = (false, 0);
    for line in fs::read_to_string(&path)?.lines() {
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.contains('-') {
            // The addresses of the next mapping, and what is mapped there.
            is_map = line.ends_with("anon_inode:bpf-map");
        } else if name == "Rss" && !is_map {
            let value = value.split_whitespace().next().and_then(|value| value.parse::<u64>().ok());
            kibibytes += value.ok_or_else(|| Failure::new(format!("{line} in {path}")))?;
        }
    }
    Ok(kibibytes << 10)
}

/// Bytes of memory of the BPF maps that the process holds, each counted once.
pub fn map_bytes(id: u32) -> Result<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{id}/fdinfo"))? {
        // One that has just been closed holds nothing.
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        let number =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(map), Some(bytes)) = (number("map_id:"), number("memlock:")) {
            maps.insert(map, bytes);
        }
    }
    Ok(maps.values().sum())
}

/// Time of a processor that the process has used.
pub fn used_time(id: u32) -> Result<Duration> {
    let path = format!("/proc/{id}/stat");
    let stat = fs::read_to_string(&path)?;
    // The name in parentheses may hold anything; utime and stime are the 12th and 13th after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    match (&ticks[..], sysconf(SysconfVar::CLK_TCK)?) {
        ([user, system], Some(per_second)) if per_second > 0 => {
            Ok(Duration::from_secs_f64((user + system) / per_second as f64))
        }
        _ => Err(Failure::new(format!("no times in {path}"))),
    }
}

/// Time of a processor that all threads of the process have used, as the scheduler has it: in nanoseconds, not ticks.
pub fn run_time(id: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{id}/task"))? {
        total += task_run_time(&task?.path())?;
    }
    Ok(total)
}

/// As [`run_time`], of the process's thread of this name.
pub fn thread_run_time(id: u32, name: &str) -> Result<Duration> {
    for task in fs::read_dir(format!("/proc/{id}/task"))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == name {
            return task_run_time(&task);
        }
    }
    Err(Failure::new(format!("the process {id} has no thread {name}")))
}

fn task_run_time(task: &Path) -> Result<Duration> {
    let path = task.join("schedstat");
    let text = fs::read_to_string(&path)?;
    let nanos = text.split_whitespace().next().and_then(|text| text.parse().ok());
    nanos.map(Duration::from_nanos).ok_or_else(|| Failure::new(format!("no run time in {}", path.display())))
}

/// The processes whose name begins with `prefix`.
pub fn named(prefix: &str) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?.file_name();
        // One that has just ended has no name, and is not meant.
        if let Ok(id) = entry.to_string_lossy().parse()
            && name(id).is_ok_and(|name| name.starts_with(prefix))
        {
            found.insert(id);
        }
    }
    Ok(found)
}

/// Has a task run on this processor only.
pub fn pin(task: Pid, processor: usize) -> Result {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(task, &set)?;
    Ok(())
}

/// Gives the NAPI of a host's interface a thread of its own, and finds it.
pub fn threaded(host: &Host, interface: &str) -> Result<Pid> {
    let prefix = format!("napi/{interface}-");
    let before = named(&prefix)?;
    host.shell(&format!("echo 1 >/sys/class/net/{interface}/threaded"))?;
    let new: BTreeSet<u32> = named(&prefix)?.difference(&before).copied().collect();
    match new.iter().copied().collect::<Vec<_>>()[..] {
        [one] => Ok(Pid::from_raw(i32::try_from(one)?)),
        // Somebody else's interface of this name has just got one as well.
        _ => Err(Failure::new(format!("{} new threads {prefix}*, not one", new.len()))),
    }
}
