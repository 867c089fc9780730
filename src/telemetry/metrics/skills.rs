//! Skills as a label: those of the own card, a bounded number of them over the process' life.

use parking_lot::RwLock;

/// What stands for every skill that is not on the own card.
pub(super) const OTHER: &str = "other";
/// Most skills that are told apart: an agent that changes its card for ever adds no more.
const MOST: usize = 64;

/// Gives skills small numbers; 0 is [`OTHER`].
#[derive(Debug)]
pub struct Skills {
    /// A skill that left the card stays: its counts do.
    names: RwLock<Vec<String>>,
}

impl Default for Skills {
    fn default() -> Self {
        Self {
            names: RwLock::new(vec![OTHER.to_owned()]),
        }
    }
}

impl Skills {
    /// The card has these now.
    pub fn know<'a>(&self, skills: impl IntoIterator<Item = &'a str>) {
        let mut names = self.names.write();
        for skill in skills {
            if names.len() <= MOST && !names.iter().any(|known| known == skill) {
                names.push(skill.to_owned());
            }
        }
    }

    /// The number of a skill.
    pub fn place(&self, skill: &str) -> usize {
        let names = self.names.read();
        names.iter().position(|known| known == skill).unwrap_or(0)
    }

    /// What is shown for each number.
    pub fn names(&self) -> Vec<String> {
        self.names.read().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cards_skills_are_told_apart_and_not_without_end() {
        let skills = Skills::default();
        skills.know(["a", "b", "a", OTHER]);
        assert_eq!(
            ["a", "b", "c", OTHER].map(|s| skills.place(s)),
            [1, 2, 0, 0]
        );
        for number in 0..1000 {
            skills.know([format!("s{number}").as_str()]);
        }
        assert_eq!(skills.names().len(), MOST + 1);
        assert_eq!(skills.place("a"), 1);
        assert_eq!(skills.place("s999"), 0);
    }
}
