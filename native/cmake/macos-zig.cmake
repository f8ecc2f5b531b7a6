# Cross-compiling to macOS with the clang of PyPI's ziglang, which brings Apple's open headers: nothing of it runs here.
# EMOE_ZIG: the program; EMOE_ZIG_TARGET: aarch64-macos or x86_64-macos.
set(CMAKE_SYSTEM_NAME Darwin)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES EMOE_ZIG EMOE_ZIG_TARGET)
string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR "${EMOE_ZIG_TARGET}")
set(CMAKE_C_COMPILER ${EMOE_ZIG} cc -target ${EMOE_ZIG_TARGET})
set(CMAKE_CXX_COMPILER ${EMOE_ZIG} c++ -target ${EMOE_ZIG_TARGET})
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_OSX_DEPLOYMENT_TARGET "")
# Its archiver, as one word: CMake takes no arguments for these.
file(WRITE ${CMAKE_BINARY_DIR}/ar "#!/bin/sh\nexec '${EMOE_ZIG}' ar \"$@\"\n")
file(CHMOD ${CMAKE_BINARY_DIR}/ar PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
set(CMAKE_AR ${CMAKE_BINARY_DIR}/ar CACHE FILEPATH "" FORCE)
foreach(tool CMAKE_RANLIB CMAKE_INSTALL_NAME_TOOL) # what they would do is not needed to see that it links
  set(${tool} /bin/true CACHE FILEPATH "" FORCE)
endforeach()
