#include "sluice/routers/attention/sink_window/sink_window.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::SinkWindow>;
SLUICE_END_NAMESPACE
