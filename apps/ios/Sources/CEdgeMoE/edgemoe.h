/* The package holds no copy of the interface: this is the one of native/include. */
#include "../../../../native/include/edgemoe.h"
