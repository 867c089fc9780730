//! Envoy's outlier detection with its defaults, over another way to choose.

use std::time::Duration;

use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::baselines::{LeastRequests, RoundRobin};
use super::policy::{End, Policy};

/// Failures in a row that eject.
const ROW: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(10);
/// Times the count of ejections.
const EJECTION: Duration = Duration::from_secs(30);
const EJECTION_MAX: Duration = Duration::from_secs(300);
/// Share that may be ejected at a time; one always may.
const EJECTED_MAX: f64 = 0.1;
/// Share of hosts in service below which all are used ("panic").
const PANIC: f64 = 0.5;
/// Calls within an interval before a host's success rate counts, and hosts before any does.
const VOLUME: u32 = 100;
const HOSTS: usize = 5;
const DEVIATIONS: f64 = 1.9;

/// Over `P`.
pub(crate) struct Envoy<P> {
    under: P,
    hosts: Vec<Host>,
    ejected: usize,
    swept: Instant,
}

#[derive(Clone, Default)]
struct Host {
    row: u32,
    good: u32,
    all: u32,
    /// How often it was ejected; less again with every interval that it was in service.
    times: u32,
    until: Option<Instant>,
}

/// What chooses among those in service.
pub(crate) type OverRoundRobin = Envoy<RoundRobin>;
/// What chooses among those in service.
pub(crate) type OverLeastRequests = Envoy<LeastRequests>;

impl<P> Envoy<P> {
    fn eject(&mut self, place: usize, now: Instant) {
        let most = EJECTED_MAX * self.hosts.len() as f64;
        if self.ejected > 0 && (self.ejected + 1) as f64 > most {
            return;
        }
        let host = &mut self.hosts[place];
        if host.until.is_none() {
            host.times += 1;
            host.row = 0;
            host.until = Some(now + (EJECTION * host.times).min(EJECTION_MAX));
            self.ejected += 1;
        }
    }

    /// What is done every interval.
    fn sweep(&mut self, now: Instant) {
        while now >= self.swept + INTERVAL {
            self.swept += INTERVAL;
            for host in &mut self.hosts {
                match host.until {
                    Some(until) if until <= self.swept => {
                        host.until = None;
                        host.row = 0;
                        self.ejected -= 1;
                    }
                    Some(_) => {}
                    None => host.times = host.times.saturating_sub(1),
                }
            }
            for place in self.outliers() {
                self.eject(place, self.swept);
            }
            for host in &mut self.hosts {
                (host.good, host.all) = (0, 0);
            }
        }
    }

    fn outliers(&self) -> Vec<usize> {
        let counted = self.hosts.iter().enumerate();
        let rates: Vec<(usize, f64)> = counted
            .filter(|(_, host)| host.until.is_none() && host.all >= VOLUME)
            .map(|(place, host)| (place, f64::from(host.good) / f64::from(host.all)))
            .collect();
        if rates.len() < HOSTS {
            return Vec::new();
        }
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let variance = rates
            .iter()
            .map(|(_, rate)| (rate - mean).powi(2))
            .sum::<f64>()
            / count;
        let least = mean - DEVIATIONS * variance.sqrt();
        let low = rates.into_iter().filter(|(_, rate)| *rate < least);
        low.map(|(place, _)| place).collect()
    }
}

impl<P: Policy> Policy for Envoy<P> {
    type Ticket = P::Ticket;

    fn new(instances: usize, now: Instant, random: &mut SmallRng) -> Self {
        Self {
            under: P::new(instances, now, random),
            hosts: vec![Host::default(); instances],
            ejected: 0,
            swept: now,
        }
    }

    fn pick(
        &mut self,
        not: &[usize],
        now: Instant,
        random: &mut SmallRng,
    ) -> Option<(usize, P::Ticket)> {
        self.sweep(now);
        let in_service = (self.hosts.len() - self.ejected) as f64;
        if self.ejected == 0 || in_service < PANIC * self.hosts.len() as f64 {
            return self.under.pick(not, now, random);
        }
        let out = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| host.until.is_some());
        let mut left_out: Vec<usize> = out.map(|(place, _)| place).collect();
        left_out.extend(not);
        self.under.pick(&left_out, now, random)
    }

    fn end(&mut self, place: usize, ticket: P::Ticket, end: End, now: Instant, chance: f64) {
        self.under.end(place, ticket, end, now, chance);
        let host = &mut self.hosts[place];
        host.all += 1;
        if end.is_fault() {
            host.row += 1;
            if host.row >= ROW {
                self.eject(place, now);
            }
        } else {
            host.good += 1;
            host.row = 0;
        }
    }

    fn restarted(&mut self, place: usize, now: Instant) {
        // A host that comes back under another address is a new one.
        if self.hosts[place].until.is_some() {
            self.ejected -= 1;
        }
        self.hosts[place] = Host::default();
        self.under.restarted(place, now);
    }
}
