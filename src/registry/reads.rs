//! Answers to reads: one agent, a list of agents, who fits. Pure, over any catalog.
//!
//! The registry answers from its store, a sidecar from its mirror, both from here. Nobody sees
//! more than their `Sight`, and no answer passes 3 MiB.

use std::{collections::HashSet, sync::Arc};

use prost::Message;

use crate::domain::AgentName;
use crate::domain::Fault;
use crate::domain::Label;
use crate::domain::Reason;
use crate::pb;
use crate::registry::card::without_schemas;
use crate::registry::catalog::Catalog;
use crate::registry::catalog::Entry;
use crate::registry::page::PageKey;
use crate::registry::query::Query;
use crate::registry::query::home_namespace;
use crate::registry::sight::Sight;

/// Largest answer in bytes: a client takes 4 MiB, and headers want room.
pub const ANSWER_MAX: usize = 3 * 1024 * 1024;
/// Items of a page when the caller says 0.
pub const PAGE_DEFAULT: usize = 100;
/// Most items of a page.
pub const PAGE_MAX: usize = 1_000;

/// A catalog as one caller reads it.
#[derive(Clone, Copy, Debug)]
pub struct Reads<'a> {
    /// What there is.
    pub catalog: &'a Catalog,
    /// What the caller sees of it.
    pub sight: &'a Sight,
    /// Seals the page tokens.
    pub key: &'a PageKey,
}

impl Reads<'_> {
    /// One agent: its instances by id, and the cards that they name, each once on a page.
    ///
    /// # Errors
    /// `AGENT_NOT_FOUND` when it is not there or not for the caller to see; `INVALID_FIELD`,
    /// `PAGE_TOKEN_INVALID`.
    pub fn agent(&self, request: &pb::GetAgentRequest) -> Result<pb::GetAgentResponse, Fault> {
        let name = AgentName::parse_in(&request.agent, &home_namespace(self.sight.namespace()))
            .map_err(|wrong| Fault::field("agent", wrong.to_string()))?;
        let most = page_size(request.page_size, "page_size")?;
        let (caller, filter) = (self.sight.caller(), format!("agent {name}"));
        let after = self.key.cursor(&caller, &filter, &request.page_token)?;
        let visible = self.sight.sees(&name.namespace);
        let mut all = self.catalog.of_agent(&name).filter(|_| visible).peekable();
        if all.peek().is_none() {
            return Err(Fault::new(
                Reason::AgentNotFound,
                format!("no agent {name} is in the catalog, or none that you may see"),
            ));
        }
        let mut answer = Answer::new(most, true);
        let mut last: Option<&Entry> = None;
        let mut next_page_token = String::new();
        let rest = all.filter(|entry| {
            let after = after.as_deref();
            after.is_none_or(|after| entry.instance_id.as_str() > after)
        });
        for entry in rest {
            if !answer.take(entry) {
                let cursor = last.map_or("", |entry| entry.instance_id.as_str());
                next_page_token = self.key.token(&caller, &filter, cursor);
                break;
            }
            last = Some(entry);
        }
        Ok(pb::GetAgentResponse {
            cards: answer.cards,
            instances: answer.instances,
            next_page_token,
        })
    }

    /// The cards of a namespace in the order of names, each once, without schemas.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for a namespace that the caller may not see; `INVALID_FIELD`,
    /// `PAGE_TOKEN_INVALID`.
    pub fn list(&self, request: &pb::ListAgentsRequest) -> Result<pb::ListAgentsResponse, Fault> {
        let namespace = asked_namespace(self.sight, &request.namespace)?;
        let most = page_size(request.page_size, "page_size")?;
        let caller = self.sight.caller();
        let filter = format!("list {}", request.namespace);
        let after = self.key.cursor(&caller, &filter, &request.page_token)?;
        let from = after.as_deref().and_then(|cursor| cursor.split_once('#'));
        let from = from.and_then(|(name, _)| name.parse::<AgentName>().ok());
        let mut cards: Vec<pb::AgentCard> = Vec::new();
        let (mut size, mut last) = (0, after.clone().unwrap_or_default());
        for (agent, group) in self.catalog.agents_from(from.as_ref()) {
            let other = namespace.as_ref().is_some_and(|n| *n != agent.namespace);
            if other || !self.sight.sees(&agent.namespace) {
                continue;
            }
            for (cursor, card) in distinct_cards(agent, group) {
                if after.as_ref().is_some_and(|after| cursor <= *after)
                    && from.as_ref() == Some(agent)
                {
                    continue;
                }
                let card = without_schemas(&card);
                size += card.encoded_len() + FRAME;
                if cards.len() == most || (size > ANSWER_MAX && !cards.is_empty()) {
                    let next_page_token = self.key.token(&caller, &filter, &last);
                    return Ok(pb::ListAgentsResponse {
                        cards,
                        next_page_token,
                    });
                }
                cards.push(card);
                last = cursor;
            }
        }
        Ok(pb::ListAgentsResponse {
            cards,
            next_page_token: String::new(),
        })
    }

    /// Instances that fit and take work, up to the limit and 3 MiB, with their cards.
    ///
    /// # Errors
    /// `INVALID_FIELD` for a selector that cannot be read.
    pub fn discover(&self, request: &pb::DiscoverRequest) -> Result<pb::DiscoverResponse, Fault> {
        let selector = request.selector.clone().unwrap_or_default();
        let query = Query::parse(&selector, self.sight.namespace())?;
        let mut answer = Answer::new(page_size(request.limit, "limit")?, true);
        let fitting = self.catalog.matching(&query);
        for entry in fitting.filter(|e| e.serves() && self.sight.sees(&e.agent.namespace)) {
            if !answer.take(entry) {
                break;
            }
        }
        Ok(pb::DiscoverResponse {
            instances: answer.instances,
            cards: answer.cards,
            revision: self.catalog.revision.number,
        })
    }
}

/// The namespace a listing is about: the named one, else the caller's; `None` is all, for callers
/// without one.
///
/// # Errors
/// `PERMISSION_DENIED` for one that the caller may not see; `INVALID_FIELD`.
pub(super) fn asked_namespace(sight: &Sight, named: &str) -> Result<Option<Label>, Fault> {
    if named.is_empty() {
        return Ok(sight.namespace().cloned());
    }
    let namespace = named
        .parse()
        .map_err(|wrong| Fault::field("namespace", format!("{wrong}")))?;
    sight.demand(&namespace)?;
    Ok(Some(namespace))
}

/// Bytes around each item of a list: tag and length.
const FRAME: usize = 8;

/// Instances with their cards, until one bound is met.
#[derive(Debug)]
struct Answer {
    instances: Vec<pb::Instance>,
    cards: Vec<pb::AgentCard>,
    seen: HashSet<Vec<u8>>,
    most: usize,
    size: usize,
    schemas: bool,
}

impl Answer {
    fn new(most: usize, schemas: bool) -> Self {
        Self {
            instances: Vec::new(),
            cards: Vec::new(),
            seen: HashSet::new(),
            most,
            size: 0,
            schemas,
        }
    }

    /// Takes an entry with its card; false when it has no room. The first always has.
    fn take(&mut self, entry: &Entry) -> bool {
        let instance = entry.published();
        let new = !self.seen.contains(&entry.card.digest);
        let mut size = instance.encoded_len() + FRAME;
        if new {
            size += entry.card.encoded_len() + FRAME;
        }
        let full = self.instances.len() == self.most || self.size + size > ANSWER_MAX;
        if full && !self.instances.is_empty() {
            return false;
        }
        self.size += size;
        self.instances.push(instance);
        if new {
            self.seen.insert(entry.card.digest.clone());
            self.cards.push(if self.schemas {
                (*entry.card).clone()
            } else {
                without_schemas(&entry.card)
            });
        }
        true
    }
}

/// The different cards of an agent with the cursor of each, in the order of the cursors.
fn distinct_cards<'a>(
    agent: &AgentName,
    group: impl Iterator<Item = &'a Arc<Entry>>,
) -> Vec<(String, Arc<pb::AgentCard>)> {
    let mut cards: Vec<_> = group
        .map(|entry| {
            let cursor = format!("{agent}#{}", hex(&entry.card.digest));
            (cursor, Arc::clone(&entry.card))
        })
        .collect();
    cards.sort_by(|one, other| one.0.cmp(&other.0));
    cards.dedup_by(|one, other| one.0 == other.0);
    cards
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

fn page_size(asked: i32, path: &str) -> Result<usize, Fault> {
    match usize::try_from(asked) {
        Ok(0) => Ok(PAGE_DEFAULT),
        Ok(size) if size <= PAGE_MAX => Ok(size),
        Ok(_) | Err(_) => Err(Fault::field(path, "from 1 to 1000, or 0 for 100")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixture::entry;
    use crate::registry::fixture::entry_of;
    use crate::registry::fixture::member;
    use crate::registry::fixture::request;

    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        for (id, agent) in [
            ("a", "default/billing"),
            ("b", "default/billing"),
            ("c", "default/ledger"),
            ("d", "default/ledger"),
            ("e", "prod/billing"),
        ] {
            let skill = if id == "d" { "other" } else { "pay" };
            catalog.put(Arc::new(entry(id, agent, &[skill])));
        }
        catalog
    }

    fn ask<R>(catalog: &Catalog, caller: &Sight, run: impl FnOnce(Reads<'_>) -> R) -> R {
        let key = PageKey::new(&[1; 32]);
        run(Reads {
            catalog,
            sight: caller,
            key: &key,
        })
    }

    fn get(agent: &str, page_size: i32, page_token: &str) -> pb::GetAgentRequest {
        pb::GetAgentRequest {
            agent: agent.into(),
            page_size,
            page_token: page_token.into(),
        }
    }

    fn list(namespace: &str, page_token: &str) -> pb::ListAgentsRequest {
        pb::ListAgentsRequest {
            page_size: 1,
            page_token: page_token.into(),
            namespace: namespace.into(),
        }
    }

    fn insider() -> Sight {
        Sight::of(member("default/web"))
    }

    fn operator() -> Sight {
        Sight::of("spiffe://a/operator/ops".parse().unwrap())
    }

    #[test]
    fn what_may_not_be_seen_is_not_found_in_the_same_words() {
        let catalog = catalog();
        let refused = |agent: &str| {
            let asked = get(agent, 0, "");
            let fault = ask(&catalog, &insider(), |r| r.agent(&asked)).unwrap_err();
            (fault.reason, fault.text.replace(agent, "it"))
        };
        assert_eq!(refused("prod/billing"), refused("prod/nobody"));
        assert_eq!(refused("prod/billing").0, Reason::AgentNotFound);
        let asked = get("prod/billing", 0, "");
        let seen = ask(&catalog, &operator(), |r| r.agent(&asked)).unwrap();
        assert_eq!(seen.instances.len(), 1);
        assert!(!seen.cards[0].skills[0].input_schema.is_empty());
    }

    #[test]
    fn pages_go_on_where_they_ended_and_for_nobody_else() {
        let catalog = catalog();
        let first = ask(&catalog, &insider(), |r| r.agent(&get("billing", 1, ""))).unwrap();
        assert_eq!(first.instances[0].id, "a");
        let token = first.next_page_token;
        let second = ask(&catalog, &insider(), |r| {
            r.agent(&get("billing", 1, &token))
        })
        .unwrap();
        assert_eq!(second.instances[0].id, "b");
        assert_eq!(second.next_page_token, "");
        for (caller, agent) in [(operator(), "billing"), (insider(), "ledger")] {
            let moved = ask(&catalog, &caller, |r| r.agent(&get(agent, 1, &token)));
            assert_eq!(moved.unwrap_err().reason, Reason::PageTokenInvalid);
        }
    }

    #[test]
    fn a_list_has_every_card_once_and_bare() {
        let catalog = catalog();
        let walk = |caller: Sight, namespace: &str| {
            let (mut names, mut token) = (Vec::new(), String::new());
            loop {
                let page = ask(&catalog, &caller, |r| r.list(&list(namespace, &token))).unwrap();
                for card in page.cards {
                    assert!(card.skills[0].input_schema.is_empty());
                    names.push(format!("{}/{}", card.namespace, card.name));
                }
                token = page.next_page_token;
                if token.is_empty() {
                    return names;
                }
            }
        };
        let own = ["default/billing", "default/ledger", "default/ledger"];
        assert_eq!(walk(insider(), ""), own);
        assert_eq!(walk(operator(), "prod"), ["prod/billing"]);
        assert_eq!(walk(operator(), "").len(), 4);
        let foreign = ask(&catalog, &insider(), |r| r.list(&list("prod", "")));
        assert_eq!(foreign.unwrap_err().reason, Reason::PermissionDenied);
    }

    #[test]
    fn discovery_finds_the_living_in_sight() {
        let catalog = catalog();
        let mut asked = pb::DiscoverRequest {
            selector: Some(pb::Selector {
                skill: "pay".into(),
                ..Default::default()
            }),
            limit: 0,
        };
        let found = |caller: Sight, asked: &pb::DiscoverRequest| -> Vec<String> {
            let found = ask(&catalog, &caller, |r| r.discover(asked)).unwrap();
            found.instances.into_iter().map(|i| i.id).collect()
        };
        assert_eq!(found(insider(), &asked), ["a", "b", "c"]);
        assert_eq!(found(operator(), &asked), ["a", "b", "c", "e"]);
        asked.limit = 2;
        assert_eq!(found(insider(), &asked), ["a", "b"]);
        asked.selector.as_mut().unwrap().agent = "prod/billing".into();
        assert!(found(insider(), &asked).is_empty());
        asked.limit = 1_001;
        let refused = ask(&catalog, &insider(), |r| r.discover(&asked)).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("limit"));
    }

    #[test]
    fn no_answer_passes_its_size() {
        let mut catalog = Catalog::default();
        for place in 0..100 {
            let mut made = request(&["pay", "x", "y"]);
            let card = made.card.as_mut().unwrap();
            card.version = format!("1.0.{place}");
            for skill in &mut card.skills {
                skill.input_schema = format!("{{\"title\":\"{}\"}}", "x".repeat(16_000));
            }
            let entry = entry_of(
                &format!("i{place:03}"),
                "default/big",
                made.card.unwrap(),
                made.instance.unwrap(),
            );
            catalog.put(Arc::new(entry));
        }
        let (mut seen, mut token) = (0, String::new());
        loop {
            let page = ask(&catalog, &insider(), |r| {
                r.agent(&get("big", 1_000, &token))
            })
            .unwrap();
            assert!(page.encoded_len() < ANSWER_MAX + 1_024);
            seen += page.instances.len();
            let size = page.encoded_len();
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
            assert!(size > ANSWER_MAX / 2);
        }
        assert_eq!(seen, 100);
    }
}
