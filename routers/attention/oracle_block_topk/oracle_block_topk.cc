#include "sluice/routers/attention/oracle_block_topk/oracle_block_topk.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::OracleBlockTopK>;
SLUICE_END_NAMESPACE
