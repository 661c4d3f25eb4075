//! A word of memory that others read and write at the same time: other CPUs, and
//! the controller, which has the kernel's tables mapped.
//!
//! The standard library's atomics would be it, but for eBPF there are none of 32
//! bits, and none that compare. So loads and stores are volatile: each is one
//! access of the whole aligned word, and the compiler neither leaves one out nor
//! changes their order. On machines that reorder loads or stores themselves, what
//! is read of one connection is held together by its version
//! ([`crate::abi::Connection::life`]), which is only ever exchanged or stands
//! behind an exchange; exchanges order everything around them.

use core::cell::UnsafeCell;

/// See the module. For `u32` and `u64`.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Word<T>(UnsafeCell<T>);

// SAFETY: every access is of the whole word at once, as the machine does it, and
// every value of it is valid.
unsafe impl Sync for Word<u32> {}
// SAFETY: as above.
unsafe impl Sync for Word<u64> {}

impl<T: Copy> Word<T> {
    /// With this value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// What stands there now.
    #[inline(always)]
    pub fn load(&self) -> T {
        // SAFETY: the pointer is of a cell that is borrowed, so it is valid and
        // aligned.
        unsafe { self.0.get().read_volatile() }
    }

    /// Writes it.
    #[inline(always)]
    pub fn store(&self, value: T) {
        // SAFETY: as above; no reference to the inside is ever given out.
        unsafe { self.0.get().write_volatile(value) }
    }

    /// Where it stands, for exchanges.
    #[inline(always)]
    pub const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}
