// Tells a session what iOS and macOS say about memory. Apple's systems only.
#if canImport(Darwin)
    import Dispatch

    #if canImport(UIKit)
        import UIKit
    #endif

    /// Watches from its making to its end. The system says when memory is short, and also when it no longer is.
    public final class MemoryWatch {
        private let source: DispatchSourceMemoryPressure
        #if canImport(UIKit)
            private var observer: NSObjectProtocol?
        #endif

        public init(_ session: Session) {
            source = DispatchSource.makeMemoryPressureSource(eventMask: [.normal, .warning, .critical], queue: .global())
            source.setEventHandler { [source, weak session] in
                let event = source.data
                let level: MemoryLevel =
                    event.contains(.critical) ? .critical : event.contains(.warning) ? .low : .normal
                session?.memoryWarning(level)
            }
            source.resume()
            #if canImport(UIKit)
                observer = NotificationCenter.default.addObserver(
                    forName: UIApplication.didReceiveMemoryWarningNotification, object: nil, queue: nil
                ) { [weak session] _ in session?.memoryWarning(.critical) }
            #endif
        }

        deinit {
            source.cancel()
            #if canImport(UIKit)
                if let observer { NotificationCenter.default.removeObserver(observer) }
            #endif
        }
    }
#endif
