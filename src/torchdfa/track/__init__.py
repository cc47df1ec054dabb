"""Visual tracking as online learning (paper section 4.2): MDNet with any rule in its head, and the OTB evaluation."""
