#ifndef SLUICE_RUNTIME_BASE_TBB_EXECUTOR_H_
#define SLUICE_RUNTIME_BASE_TBB_EXECUTOR_H_
#include <memory>

#include "sluice/api/executor.h"

SLUICE_BEGIN_NAMESPACE
// oneTBB threads in an arena of their own; work is stolen in pieces of `grain`. threads = 0: one
// per CPU. The limit is the arena's: other users of oneTBB in the process keep all their threads.
// Where `threads` exceeds what oneTBB runs at once, fewer threads do the work of all workers.
std::unique_ptr<Executor> MakeTbbExecutor(int threads = 0);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_BASE_TBB_EXECUTOR_H_
