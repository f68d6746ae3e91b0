#include "sluice/routers/expert/care_edit/care_edit.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::CareEdit>;
SLUICE_END_NAMESPACE
