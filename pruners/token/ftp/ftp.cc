#include "sluice/pruners/token/ftp/ftp.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<Ftp>;
template class RouterOf<FtpStatic>;
SLUICE_END_NAMESPACE
