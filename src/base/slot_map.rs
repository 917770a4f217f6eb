//! Values in numbered slots that are used again, each with a generation, so that a stale key finds
//! nothing instead of somebody else's value.

/// Names one value of a [`SlotMap`] for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The slot.
    pub index: u32,
    /// How often the slot was used before.
    pub generation: u32,
}

impl Key {
    /// The key as one number, for tokens and logs.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// See the module.
pub struct SlotMap<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for SlotMap<T> {
    fn default() -> Self {
        SlotMap { slots: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> SlotMap<T> {
    /// Values held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no value is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the map itself, values included, not what they own.
    pub fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot<T>>() + self.free.capacity() * 4
    }

    /// Puts `value` into a free slot.
    ///
    /// # Panics
    /// Past `u32::MAX` values; limits keep every use far below.
    pub fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            return Key { index, generation: slot.generation };
        }
        let index = u32::try_from(self.slots.len()).expect("limits keep slots below u32::MAX");
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Key { index, generation: 0 }
    }

    /// Takes the value out; its key finds nothing from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        self.len -= 1;
        Some(value)
    }

    /// The value of `key`, if it still lives.
    pub fn at(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        if slot.generation == key.generation { slot.value.as_ref() } else { None }
    }

    /// The value of `key`, if it still lives.
    pub fn at_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation { slot.value.as_mut() } else { None }
    }

    /// Slots, free ones included: one more than the highest index ever used.
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// The value in slot `index` and its key, if there is one.
    pub fn at_index(&self, index: u32) -> Option<(Key, &T)> {
        let slot = self.slots.get(index as usize)?;
        let key = Key { index, generation: slot.generation };
        slot.value.as_ref().map(|value| (key, value))
    }

    /// All values, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let key = Key { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (key, value))
        })
    }

    /// All values, by slot, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let key = Key { index: index as u32, generation: slot.generation };
            slot.value.as_mut().map(|value| (key, value))
        })
    }

    /// All keys, by slot, at this moment.
    pub fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::SlotMap;

    #[test]
    fn stale_keys_find_nothing() {
        let mut map = SlotMap::default();
        let first = map.insert("a");
        assert_eq!(map.remove(first), Some("a"));
        let second = map.insert("b");
        assert_eq!(second.index, first.index);
        assert_eq!(map.at(first), None);
        assert_eq!(map.remove(first), None);
        assert_eq!(map.at(second), Some(&"b"));
        assert_eq!(map.len(), 1);
        assert_eq!((map.at_index(0), map.at_index(1)), (Some((second, &"b")), None));
        assert_eq!(map.remove(second), Some("b"));
        assert_eq!((map.at_index(0), map.slot_count()), (None, 1));
    }
}
