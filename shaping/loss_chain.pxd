"""LossChain: which packets of a sequence are lost, by a Markov chain of up to four states with a
probability of loss each. Random loss has one state; Gilbert's and Elliott's models have two; the
4-state model of netem (GI) has four.

Skip-ahead sampling: the chain draws how many packets pass until the next loss, not a number for
each packet. So the cost follows the losses, and the pattern depends on the packets' places in the
sequence only: not on batches, GSO or engines.
"""
from libc.math cimport log
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.random_stream cimport RandomStream, random_unit

cdef enum:
    CHAIN_STATES = 4
    MOVES_MOST = 256                     # of chain_next, which a rare loss would make long

cdef extern from *:
    """
    #define VNIC_NO_EVENT (1ULL << 62)
    """
    const uint64_t NO_EVENT "VNIC_NO_EVENT"       # packets until an event that never comes

cdef struct ChainSetting:
    uint32_t states                      # 0: nothing is ever lost
    double loss[CHAIN_STATES]            # probability that a packet is lost in this state
    double stay[CHAIN_STATES]            # probability to stay in it for another packet
    # sums of the probabilities to go to states 0, 1, ... next, given that the state is left
    double go[CHAIN_STATES][CHAIN_STATES]

cdef struct LossChain:
    uint32_t state
    uint64_t left                        # packets for which the state lasts
    bint lost                            # see chain_next
    RandomStream stream

cdef inline uint64_t geometric(RandomStream *stream, double goes_on) noexcept nogil:
    """How often something with the probability `goes_on` happens before it does not; at most
    NO_EVENT. Inverts the distribution function with one number of the stream."""
    cdef double count
    if goes_on <= 0.0:
        return 0
    if goes_on >= 1.0:
        return NO_EVENT
    count = log(1.0 - random_unit(stream)) / log(goes_on)        # 1 - u: in (0, 1]
    return <uint64_t>count if count < <double>NO_EVENT else NO_EVENT

cdef inline void chain_start(const ChainSetting *setting, LossChain *chain) noexcept nogil:
    """Begins in state 0."""
    chain.state = 0
    if setting.states:
        chain.left = 1 + geometric(&chain.stream, setting.stay[0])

cdef inline void chain_move(const ChainSetting *setting, LossChain *chain) noexcept nogil:
    """Goes to another state."""
    cdef double u = random_unit(&chain.stream)
    cdef uint32_t to = 0
    while to < setting.states - 1 and u >= setting.go[chain.state][to]:
        to += 1
    chain.state = to
    chain.left = 1 + geometric(&chain.stream, setting.stay[to])

cdef inline uint64_t chain_next(const ChainSetting *setting, LossChain *chain) noexcept nogil:
    """How many packets pass before the next event. If then chain.lost, the packet after them is
    lost, and the chain stands behind it; else the caller asks again before that packet. NO_EVENT:
    no packet is lost any more."""
    cdef uint64_t passed = 0, until
    cdef uint32_t moves = 0
    chain.lost = False
    if setting.states == 0:
        return NO_EVENT
    while passed < NO_EVENT and moves < MOVES_MOST:
        if chain.left == 0:
            chain_move(setting, chain)
            moves += 1
        until = geometric(&chain.stream, 1.0 - setting.loss[chain.state])
        if until < chain.left:
            chain.left -= until + 1
            chain.lost = True
            return passed + until
        passed += chain.left
        chain.left = 0
    return min(passed, NO_EVENT)
