"""Random numbers for elements: counter-based, so that the n-th number of a stream can be computed
alone.

A stream is SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA
2014) from a key, which `Element.seed(purpose)` derives from the instance's seed, the element's name
and the purpose. So a configuration and a seed give the same numbers, independent of other elements,
engines and packets. An element saves only `count` of a stream. Not for keys or other secrets.
"""
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    static inline unsigned long long vnic_high_product(unsigned long long a, unsigned long long b)
    {
        return (unsigned long long)(((unsigned __int128)a * b) >> 64);
    }
    """
    uint64_t vnic_high_product(uint64_t a, uint64_t b) nogil

cdef struct RandomStream:
    uint64_t key
    uint64_t count               # numbers drawn so far

cdef inline uint64_t random_at(const RandomStream *stream, uint64_t n) noexcept nogil:
    """Number n of the stream, n >= 0: uniform over 64 bits."""
    cdef uint64_t x = stream.key + (n + 1) * <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)

cdef inline uint64_t random_next(RandomStream *stream) noexcept nogil:
    """The next number: uniform over 64 bits."""
    stream.count += 1
    return random_at(stream, stream.count - 1)

cdef inline uint64_t random_below(RandomStream *stream, uint64_t bound) noexcept nogil:
    """The next number, scaled to below `bound`; each probability is exact to 2^-64."""
    return vnic_high_product(random_next(stream), bound)

cdef inline double random_unit(RandomStream *stream) noexcept nogil:
    """The next number, scaled to [0.0, 1.0) in steps of 2^-53."""
    return <double>(random_next(stream) >> 11) * (1.0 / 9007199254740992.0)
