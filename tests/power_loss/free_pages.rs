//! The pages of a database file that are free: <https://www.sqlite.org/fileformat2.html#the_freelist>.

/// The same image with nothing in the leaves of its list of free pages.
pub(crate) fn blank(mut image: Vec<u8>) -> Vec<u8> {
    let page_size = match image.get(16..18) {
        Some([0, 1]) => 65_536,
        Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => return image,
    };
    if page_size < 512 {
        return image;
    }
    let number = |image: &[u8], at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    };
    let mut trunk = number(&image, 32).unwrap_or(0);
    // A list that does not end is damaged.
    for _ in 0..image.len() / page_size {
        let Some(at) = trunk.checked_sub(1).map(|trunk| trunk * page_size) else {
            break;
        };
        let leaves = number(&image, at + 4).unwrap_or(0).min(page_size / 4);
        for leaf in (0..leaves)
            .filter_map(|leaf| number(&image, at + 8 + leaf * 4))
            .collect::<Vec<_>>()
        {
            let start = leaf.saturating_sub(1) * page_size;
            if let Some(page) = image.get_mut(start..start + page_size) {
                page.fill(0);
            }
        }
        trunk = number(&image, at).unwrap_or(0);
    }
    image
}
