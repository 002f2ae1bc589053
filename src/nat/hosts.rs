//! Internal addresses that have sessions: what each may open, and the external address it is paired with.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::Ipv4Addr;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::config::Limits;
use super::event::{DropReason, Side};
use crate::time::Instant;

/// See the module. An address stays for as long as it has a session.
#[derive(Debug)]
pub struct Hosts {
    hosts: HashMap<Ipv4Addr, Host, Keyed>,
}

#[derive(Debug)]
struct Host {
    /// But for those that clients of a service have opened.
    sessions: u32,
    /// Of these, opened by a remote.
    from_outside: u32,
    served: u32,
    /// RFC 4787 REQ-2.
    paired: Ipv4Addr,
    bucket: Bucket,
}

impl Hosts {
    pub fn new(keyed: Keyed) -> Self {
        Self { hosts: HashMap::with_hasher(keyed) }
    }

    /// The keyed hash that the table uses.
    pub fn keyed(&self) -> Keyed {
        *self.hosts.hasher()
    }

    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Pairs `internal` anew, if it has a session.
    pub fn pair(&mut self, internal: Ipv4Addr, external: Ipv4Addr) {
        if let Some(host) = self.hosts.get_mut(&internal) {
            host.paired = external;
        }
    }

    /// Lets `internal` have one more session, which takes from its rate, and gives the external address that it is
    /// paired with, if it has a session already.
    ///
    /// # Errors
    /// The limit that it has reached.
    pub fn admit(
        &mut self,
        now: Instant,
        internal: Ipv4Addr,
        side: Side,
        limits: &Limits,
    ) -> Result<Option<Ipv4Addr>, DropReason> {
        let most = limits.sessions_per_address;
        let Some(host) = self.hosts.get_mut(&internal) else {
            return if most == 0 { Err(DropReason::AddressSessionLimit) } else { Ok(None) };
        };
        // What remotes open must not keep the host itself from opening sessions.
        let outside_full = side == Side::External && host.from_outside >= most / 2;
        if host.sessions >= most || outside_full {
            return Err(DropReason::AddressSessionLimit);
        }
        let rate = limits.new_sessions_per_second;
        if rate > 0 && !host.bucket.take(now, rate) {
            return Err(DropReason::AddressRateLimit);
        }
        Ok(Some(host.paired))
    }

    /// Counts a session that was opened, the first of its address pairing it with `paired`. `side` has opened it; unset:
    /// a client of a service, which takes nothing from what its target may have.
    pub fn opened(
        &mut self,
        now: Instant,
        internal: Ipv4Addr,
        side: Option<Side>,
        paired: Ipv4Addr,
        limits: &Limits,
    ) {
        let host = self.hosts.entry(internal).or_insert_with(|| {
            let mut bucket = Bucket::default();
            if side.is_some() {
                // The first session takes from the rate too.
                bucket.take(now, limits.new_sessions_per_second);
            }
            Host { sessions: 0, from_outside: 0, served: 0, paired, bucket }
        });
        match side {
            Some(side) => {
                host.sessions += 1;
                host.from_outside += u32::from(side == Side::External);
            }
            None => host.served += 1,
        }
    }

    /// Counts that a session now is one that `to` has opened.
    pub fn changed_opener(&mut self, internal: Ipv4Addr, from: Side, to: Side) {
        let Some(host) = self.hosts.get_mut(&internal) else { return };
        host.from_outside = host.from_outside.saturating_sub(u32::from(from == Side::External));
        host.from_outside += u32::from(to == Side::External);
    }

    /// Counts a session that ended, and forgets the address with its last; `side` as of [`Self::opened`].
    pub fn closed(&mut self, internal: Ipv4Addr, side: Option<Side>) {
        let Some(host) = self.hosts.get_mut(&internal) else { return };
        match side {
            Some(side) => {
                host.sessions = host.sessions.saturating_sub(1);
                host.from_outside = host.from_outside.saturating_sub(u32::from(side == Side::External));
            }
            None => host.served = host.served.saturating_sub(1),
        }
        if host.sessions == 0 && host.served == 0 {
            self.hosts.remove(&internal);
        }
    }
}

/// A token bucket, as the generic cell rate algorithm keeps it (ITU-T I.371): full when new.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// When it would be full again.
    full_at: Instant,
}

impl Bucket {
    /// Takes a token if there is one; `rate` come in a second, and as many fit.
    pub fn take(&mut self, now: Instant, rate: u32) -> bool {
        let Some(token) = Duration::from_secs(1).checked_div(rate) else { return false };
        let full_at = self.full_at.max(now) + token;
        if full_at - now > Duration::from_secs(1) {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

/// SipHash-1-3 under a secret key.
#[derive(Clone, Copy, Debug)]
pub struct Keyed(pub SipHasher13);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        self.0
    }
}
