//! Which target a connection gets.

use std::cmp::Reverse;
use std::net::SocketAddr;

use super::Group;
use super::admission::client_key;
use super::config::Algorithm;
use super::event::Serving;
use super::member::Member;
use crate::time::Instant;

impl Group {
    /// Chooses the target of a new connection from `client`, which counts as one of the target's from now on, until
    /// [`Self::closed`]. `exclude` are targets that this connection has tried in vain. `None` if there is nobody
    /// left.
    ///
    /// Whoever cannot be served by the best is served by the next best (see [`Serving`]), but never by an unhealthy
    /// target while another is healthy.
    pub fn select(&mut self, now: Instant, client: SocketAddr, exclude: &[SocketAddr]) -> Option<SocketAddr> {
        let Some((rank, target)) = self.choice(now, client, exclude) else {
            self.counters.unserved += 1;
            return None;
        };
        self.counters.selected += 1;
        self.counters.selected_fail_open += u64::from(rank == Serving::FailOpen);
        if self.config.stickiness.is_some() {
            *self.sticky.entry(now, client_key(client.ip()), || target) = target;
        }
        if let Some(member) = self.members.get_mut(&target) {
            member.last_chosen = self.counters.selected;
        }
        self.opened(now, target);
        Some(target)
    }

    /// A target, and with whom it serves.
    fn choice(
        &mut self,
        now: Instant,
        client: SocketAddr,
        exclude: &[SocketAddr],
    ) -> Option<(Serving, SocketAddr)> {
        if let Some(target) = self.sticky(now, client, exclude) {
            self.counters.selected_sticky += 1;
            return Some((self.serving, target));
        }
        let others = self.members.iter().filter(|(address, _)| !exclude.contains(address));
        let ranks = others.filter_map(|(_, member)| member.serves());
        let rank = ranks.filter(|rank| *rank < Serving::FailOpen || self.serving == Serving::FailOpen).min()?;
        Some((rank, self.choose(client, rank, exclude)?))
    }

    /// The target that the client's address had before, if it may serve and nobody better does.
    fn sticky(&self, now: Instant, client: SocketAddr, exclude: &[SocketAddr]) -> Option<SocketAddr> {
        self.config.stickiness?;
        let target = *self.sticky.get(now, &client_key(client.ip()))?;
        let member = self.members.get(&target)?;
        (member.serves() == Some(self.serving) && !exclude.contains(&target)).then_some(target)
    }

    /// By the algorithm, among targets of `rank` that are not excluded.
    fn choose(&mut self, client: SocketAddr, rank: Serving, exclude: &[SocketAddr]) -> Option<SocketAddr> {
        let usable =
            |address: &SocketAddr, member: &Member| member.serves() == Some(rank) && !exclude.contains(address);
        match self.config.algorithm {
            Algorithm::FlowHash => {
                let members = &self.members;
                self.maglev.find(client, |address| {
                    members.get(&address).is_some_and(|member| usable(&address, member))
                })
            }
            Algorithm::RoundRobin => {
                // As nginx does it: turns of a heavy target lie between those of the others.
                let mut total = 0;
                let usable = self.members.iter_mut().filter(|(address, member)| usable(address, member));
                let (address, chosen) = usable
                    .map(|(address, member)| {
                        member.credit += i64::from(member.weight);
                        total += i64::from(member.weight);
                        (*address, member)
                    })
                    .max_by_key(|(address, member)| (member.credit, Reverse(*address)))?;
                chosen.credit -= total;
                Some(address)
            }
            Algorithm::LeastConnections => {
                let usable = self.members.iter().filter(|(address, member)| usable(address, member));
                // Connections with the new one for each unit of weight, compared without a division.
                let chosen = usable.min_by(|(_, one), (_, other)| {
                    let load =
                        |of: &Member, by: &Member| (u64::from(of.connections) + 1) * u64::from(by.weight);
                    load(one, other).cmp(&load(other, one)).then(one.last_chosen.cmp(&other.last_chosen))
                });
                chosen.map(|(address, _)| *address)
            }
        }
    }
}
