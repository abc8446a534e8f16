//! Waiting until what is committed is in the store.
//!
//! Owns who is asked, and for how long: this process's own log, where it replicates the database, or the process that does (by [`neighbours`](super::neighbours)).
//! A wait on the application's thread and one in a task are the same but for how they sleep: the first one has a connection, which
//! captures what is committed, and may be the only one that can.

use std::sync::Arc;
use std::time::{Duration, Instant};

use replvfs_vfs::host::FlushError;
use replvfs_vfs::log::Log;
use replvfs_vfs::types::Txid;

use super::neighbours::Asked;
use super::shared::Shared;
use crate::outside;

/// So often a question that comes while another one is answered is looked at before the wait.
const ATTEMPTS: usize = 3;
/// Between two looks at what may pass by itself, and no event tells of.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Until this process has let go of what nobody has open, an answer that is known waits no longer.
const LETTING_GO: Duration = Duration::from_secs(1);

pub(super) type Attend<'a> = &'a mut dyn FnMut() -> Result<(), FlushError>;

/// What is waited for: this transaction, or without one all that has been committed, and the upload does not wait for more then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) until: Option<Txid>,
    pub(super) timeout: Duration,
}

/// Pauses that become longer.
struct Pause(Duration);

impl Pause {
    fn new() -> Pause {
        Pause(SHORTEST_PAUSE)
    }

    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(LONGEST_PAUSE);
        now
    }
}

/// Waits on the application's thread, whoever replicates the database. Tells the newest transaction in the store.
pub(super) fn wait(shared: &Shared, wanted: Wanted, attend: Attend<'_>) -> Result<Option<Txid>, FlushError> {
    let end = Instant::now() + wanted.timeout;
    let left = || end.saturating_duration_since(Instant::now());
    let mut pause = Pause::new();
    loop {
        if !shared.is_standby() {
            let waited = wait_here(shared, wanted, end, attend);
            if waited.is_ok() || !shared.is_standby() {
                return waited;
            }
        }
        let refused = match shared.neighbours.ask(wanted.until, left()) {
            Asked::Acked(txid) => return Ok(txid),
            Asked::Refused(why) => return Err(FlushError::new(why)),
            // It has died, or let go, or does not listen yet.
            Asked::Nobody(_) if shared.own() => continue,
            Asked::Nobody(why) => why,
        };
        if left().is_zero() || shared.log.failure().is_some() {
            return Err(nobody(shared, wanted, &refused));
        }
        std::thread::sleep(pause.next().min(left()));
    }
}

/// Without a connection, in a task of our runtime. Of a database that nobody has open it lets go before it answers, if all is in the store.
pub(super) async fn wait_anywhere(shared: &Arc<Shared>, wanted: Wanted) -> Result<Option<Txid>, FlushError> {
    let end = tokio::time::Instant::now() + wanted.timeout;
    let guest = shared.guest();
    let waited = wait_as_guest(shared, wanted, end).await;
    drop(guest);
    let soon = tokio::time::Instant::now() + LETTING_GO;
    shared.until_let_go(end.min(soon)).await;
    waited
}

async fn wait_as_guest(
    shared: &Arc<Shared>,
    wanted: Wanted,
    end: tokio::time::Instant,
) -> Result<Option<Txid>, FlushError> {
    let left = || end.saturating_duration_since(tokio::time::Instant::now());
    let mut pause = Pause::new();
    loop {
        if !shared.is_standby() {
            let waited = wait_in_task(
                shared,
                Wanted {
                    timeout: left(),
                    ..wanted
                },
            )
            .await;
            if waited.is_ok() || !shared.is_standby() {
                return waited;
            }
        }
        let (asking, timeout) = (Arc::clone(shared), left());
        let asked = outside::blocking(move || match asking.neighbours.ask(wanted.until, timeout) {
            Asked::Nobody(why) => match asking.own_if_there() {
                Some(true) => None,
                Some(false) => Some(Asked::Nobody(why)),
                None => Some(Asked::Refused(format!(
                    "nobody has {} open, and the files beside it are gone",
                    asking.database
                ))),
            },
            asked => Some(asked),
        });
        let refused = match asked.await {
            Ok(None) => continue,
            Ok(Some(Asked::Acked(txid))) => return Ok(txid),
            Ok(Some(Asked::Refused(why))) => return Err(FlushError::new(why)),
            Ok(Some(Asked::Nobody(why))) => why,
            Err(died) => return Err(FlushError::new(died.to_string())),
        };
        if left().is_zero() || shared.log.failure().is_some() {
            return Err(nobody(shared, wanted, &refused));
        }
        tokio::time::sleep(pause.next().min(left())).await;
    }
}

/// Who replicates the database does not answer, and it is not this process.
fn nobody(shared: &Shared, wanted: Wanted, why: &str) -> FlushError {
    if let Some(reason) = shared.log.failure() {
        return FlushError::new(stopped(shared, &reason));
    }
    FlushError::new(format!(
        "another process replicates {}, and did not answer within {:?} ({why})",
        shared.database, wanted.timeout
    ))
}

/// In the process that replicates the database.
pub(super) fn wait_here(
    shared: &Shared,
    wanted: Wanted,
    end: Instant,
    attend: Attend<'_>,
) -> Result<Option<Txid>, FlushError> {
    let (log, until) = (&shared.log, wanted.until);
    let left = || end.saturating_duration_since(Instant::now());
    // From here on a store that was away is asked soon.
    let waiting = until.is_none().then(|| shared.wait_for_upload());
    let mut pause = Pause::new();
    let (target, refused) = loop {
        if until.is_some_and(|until| log.acked() >= Some(until)) {
            return Ok(log.acked());
        }
        let (before, _) = log.asked();
        let attended = match attend_to(shared, attend).and_then(|attended| can_flush(shared).map(|()| attended)) {
            Ok(attended) => attended,
            // What cannot be given without the store is asked for again when it answers.
            Err(refused) if !refused.may_pass() && is_away(shared) && log.wait_asked(before, left()) => continue,
            Err(refused) if refused.may_pass() && !left().is_zero() => {
                log.wait_asked(before, pause.next().min(left()));
                continue;
            }
            Err(refused) if refused.may_pass() => break (None, Some(refused)),
            Err(refused) => return Err(refused),
        };
        let target = attended.target(log, until);
        match target {
            Some(target) => {
                if log.wait_acked_or_asked(target, attended.asked, left()) && attended.holds(log) {
                    return Ok(log.acked());
                }
            }
            None if log.is_settled() => {
                log.wait_asked(attended.asked, pause.next().min(left()));
            }
            None => {
                log.wait_settled_or_asked(attended.asked, left());
            }
        }
        if log.failure().is_some() || left().is_zero() {
            break (target, None);
        }
    };
    drop(waiting);
    Err(refused.unwrap_or_else(|| in_vain(shared, wanted, target)))
}

/// The same in a task, without a connection.
pub(super) async fn wait_in_task(shared: &Arc<Shared>, wanted: Wanted) -> Result<Option<Txid>, FlushError> {
    let (log, until) = (&shared.log, wanted.until);
    let end = tokio::time::Instant::now() + wanted.timeout;
    let waiting = until.is_none().then(|| shared.wait_for_upload());
    let mut pause = Pause::new();
    let (target, refused) = loop {
        if until.is_some_and(|until| log.acked() >= Some(until)) {
            return Ok(log.acked());
        }
        let (before, _) = log.asked();
        let attending = {
            let shared = Arc::clone(shared);
            outside::blocking(move || attend_to(&shared, &mut || shared.log.attend()))
        };
        let attended = attending.await.unwrap_or_else(|died| {
            Err(FlushError::new(format!(
                "looking at the database failed, which is a bug in replvfs: {died}"
            )))
        });
        let is_over = tokio::time::Instant::now() >= end;
        let mut soon = || end.min(tokio::time::Instant::now() + pause.next());
        let attended = match attended.and_then(|attended| can_flush(shared).map(|()| attended)) {
            Ok(attended) => attended,
            Err(refused) if (refused.may_pass() || is_away(shared)) && !is_over => {
                let pause = if refused.may_pass() { soon() } else { end };
                shared.until(pause, || log.asked().0 > before).await;
                continue;
            }
            Err(refused) if refused.may_pass() => break (None, Some(refused)),
            Err(refused) => return Err(refused),
        };
        let has_failed_or_asked = || log.failure().is_some() || log.asked().0 != attended.asked;
        let target = attended.target(log, until);
        match target {
            Some(target) => {
                let acked = || log.acked() >= Some(target);
                shared.until(end, || acked() || has_failed_or_asked()).await;
                if acked() && attended.holds(log) {
                    return Ok(log.acked());
                }
            }
            None if log.is_settled() => shared.until(soon(), has_failed_or_asked).await,
            None => shared.until(end, || log.is_settled() || has_failed_or_asked()).await,
        }
        if log.failure().is_some() || tokio::time::Instant::now() >= end {
            break (target, None);
        }
    };
    drop(waiting);
    Err(refused.unwrap_or_else(|| in_vain(shared, wanted, target)))
}

/// What came of an attempt to have everything in the log.
struct Attended {
    /// How often the log had asked for something until then.
    asked: u64,
    /// [`Log::standing`] all the time: then all that was committed before is in the log, or was.
    standing: Option<u64>,
}

impl Attended {
    /// Numbers, and what is acknowledged by them, are of one history for as long as nothing is dropped.
    fn holds(&self, log: &Log) -> bool {
        self.standing.is_some() && log.standing() == self.standing
    }

    /// What has to be acknowledged. `None` as long as that cannot be told.
    fn target(&self, log: &Log, until: Option<Txid>) -> Option<Txid> {
        until.or_else(|| log.final_txid()).filter(|_| self.holds(log))
    }
}

/// Lets the connection that waits give what the log asks for.
fn attend_to(shared: &Shared, attend: Attend<'_>) -> Result<Attended, FlushError> {
    let log = &shared.log;
    let mut attempt = 1;
    loop {
        let ((before, _), standing) = (log.asked(), log.standing());
        attend()?;
        let (asked, answered) = log.asked();
        // Else it was asked again meanwhile. What the connection finds wrong by itself it asks for, and answers, as well.
        let is_all = answered || asked == before;
        if is_all || attempt == ATTEMPTS {
            return Ok(Attended {
                asked: if is_all { asked } else { before },
                // What was captured while something was dropped is not in the log, whoever has answered since.
                standing: standing.filter(|standing| log.standing() == Some(*standing)),
            });
        }
        attempt += 1;
    }
}

fn is_away(shared: &Shared) -> bool {
    shared.status.current_trouble().is_some()
}

/// Why it would be in vain to wait for the upload, if it is known by now.
fn can_flush(shared: &Shared) -> Result<(), FlushError> {
    if let Some(reason) = shared.log.failure() {
        return Err(FlushError::new(stopped(shared, &reason)));
    }
    if shared.log.last_txid().is_none() {
        return Err(FlushError::new(format!(
            "nothing of {} was captured yet: read or write it once",
            shared.database
        )));
    }
    if shared.is_standby() {
        return Err(FlushError::new(format!(
            "another process replicates {}; ask there, or wait until it has ended",
            shared.database
        )));
    }
    Ok(())
}

/// Why a wait is over though nothing came of it.
fn in_vain(shared: &Shared, wanted: Wanted, target: Option<Txid>) -> FlushError {
    if let Some(reason) = shared.log.failure() {
        return FlushError::new(stopped(shared, &reason));
    }
    let trouble = shared
        .status
        .current_trouble()
        .map(|trouble| format!(" ({trouble})"))
        .unwrap_or_default();
    let (replica, database, timeout) = (shared.store.replica(), &shared.database, wanted.timeout);
    FlushError::new(match target {
        Some(target) => format!(
            "transaction {target} of {database} was not in the replica {replica} within {timeout:?}{trouble}; it is committed here, and \
             the upload goes on"
        ),
        None => format!(
            "the replica {replica} has not told within {timeout:?} how the history of {database} goes on{trouble}; what is committed here \
             is uploaded as soon as it does"
        ),
    })
}

pub(super) fn stopped(shared: &Shared, reason: &str) -> String {
    format!("replication of {} stopped: {reason}", shared.database)
}
