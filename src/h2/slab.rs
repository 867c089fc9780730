//! A slab whose keys cannot be mistaken: a key of something removed finds nothing, never its successor.
//!
//! Owns the values by index and the number of times each place was filled. Refuses nothing: it is
//! bounded by those who insert. Nothing is allocated once it has grown to the most that was held.

/// Where a value is kept. Copy it freely: once the value is removed, the key finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    index: u32,
    turn: u32,
}

impl Key {
    /// How often the place was filled before.
    pub fn turn(self) -> u32 {
        self.turn
    }

    /// The place: small, dense, and used again after removal.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Debug)]
struct Place<T> {
    turn: u32,
    value: Option<T>,
}

/// Values by key. See the module.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Keeps a value.
    pub fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.value = Some(value);
            return Key {
                index,
                turn: place.turn,
            };
        }
        let index = u32::try_from(self.places.len()).expect("fewer than 2^32 values fit memory");
        self.places.push(Place {
            turn: 0,
            value: Some(value),
        });
        Key { index, turn: 0 }
    }

    /// The value, unless it was removed.
    #[inline]
    pub fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize)?;
        (place.turn == key.turn).then_some(place.value.as_ref()?)
    }

    /// The value, unless it was removed.
    #[inline]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.turn != key.turn {
            return None;
        }
        place.value.as_mut()
    }

    /// Takes the value out; every copy of its key is worth nothing from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.turn != key.turn {
            return None;
        }
        let value = place.value.take()?;
        place.turn = place.turn.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    /// How many values are kept.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every value with its key, by place.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0u32..).zip(&self.places).filter_map(|(index, place)| {
            let key = Key {
                index,
                turn: place.turn,
            };
            Some((key, place.value.as_ref()?))
        })
    }

    /// Every value, by place.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places
            .iter_mut()
            .filter_map(|place| place.value.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_key_finds_nothing_even_when_its_place_is_filled_again() {
        let mut slab = Slab::default();
        let first = slab.insert("a");
        let other = slab.insert("b");
        assert_eq!(slab.remove(first), Some("a"));
        let again = slab.insert("c");
        assert_eq!(again.index(), first.index());
        assert_eq!(
            (slab.get(first), slab.get(again), slab.get(other)),
            (None, Some(&"c"), Some(&"b"))
        );
        assert_eq!((slab.remove(first), slab.get_mut(first)), (None, None));
        assert_eq!((slab.len(), slab.is_empty()), (2, false));
        assert_eq!(
            slab.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            [again, other]
        );
    }
}
