#!/bin/sh
# The notes' Tomcat of old, played by today's: the same paths, the same web application.
home=/root/apache-tomcat-7.0.42-v2
exec "$JAVA_HOME/bin/java" -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto \
    -classpath /usr/share/tomcat10/bin/bootstrap.jar:/usr/share/tomcat10/bin/tomcat-juli.jar \
    -Dcatalina.home=/usr/share/tomcat10 -Dcatalina.base=$home -Djava.io.tmpdir=$home/temp \
    org.apache.catalina.startup.Bootstrap start
