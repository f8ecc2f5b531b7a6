// Threads that sleep for a device and have little to do when it answers.
#pragma once

namespace emoe {

// Asks the kernel to run the calling thread soon after it is woken, also when every core is busy: its turns are short.
// Linux 6.12 and newer (EEVDF: a shorter slice is an earlier deadline); elsewhere nothing happens.
void prefer_short_turns();

// Lets the calling thread sleep no longer than it asks for; Linux adds 50 us otherwise. Elsewhere nothing happens.
void sleep_exactly();

} // namespace emoe
