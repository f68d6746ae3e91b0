#ifndef SLUICE_TESTS_SUPPORT_COUNTING_ALLOCATOR_H_
#define SLUICE_TESTS_SUPPORT_COUNTING_ALLOCATOR_H_
#include <cstdint>

// Number of operator new calls in this process so far. Link counting_allocator.cc.
int64_t AllocationCount();
#endif  // SLUICE_TESTS_SUPPORT_COUNTING_ALLOCATOR_H_
