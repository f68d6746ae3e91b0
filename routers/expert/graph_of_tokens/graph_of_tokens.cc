#include "sluice/routers/expert/graph_of_tokens/graph_of_tokens.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::GraphOfTokens>;
SLUICE_END_NAMESPACE
